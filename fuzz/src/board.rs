//! The logarithm of the pages, bits for what else is true of the file, and the bytes of the first page.

use std::os::fd::AsFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use windlass_transports::shm::board::{BOUNCE_BYTES, Board, WAYS};
use windlass_transports::shm::{ArrivalLine, Doorbell, Watermark};

const PAGE: usize = 4096;

/// An error, or a board all of whose parts lie inside.
pub fn run(bytes: &[u8]) {
    let Some((&[pages, bits], page)) = bytes.split_first_chunk() else { return };
    let length = (PAGE << (pages % 24)) - usize::from(bits >> 1 & 1);
    let file = memfd_create("board", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a memfd");
    ftruncate(&file, length as u64).expect("a sparse file");
    let page = &page[..page.len().min(PAGE).min(length)];
    assert_eq!(rustix::io::pwrite(&file, page, 0).expect("the first page"), page.len());
    if bits & 1 == 0 {
        fcntl_add_seals(&file, SealFlags::SHRINK).expect("a seal");
    }
    let Ok(board) = Board::open(file.as_fd()) else { return };
    assert!(bits & 1 == 0, "a file that can shrink was taken");
    inside(&board, length);
}

/// The doorbell lies 1 KiB from the begin.
fn inside(board: &Board, length: usize) {
    let begin = std::ptr::from_ref(board.doorbell()).addr() - 1024;
    let lies = |at: usize, bytes: u64, align: usize| {
        let end = (at - begin).checked_add(usize::try_from(bytes).expect("a size"));
        assert!(at >= begin && end.is_some_and(|end| end <= length), "{at:x} + {bytes}: {board:?}");
        assert!(at.is_multiple_of(align), "{at:x} is not aligned to {align}");
    };
    lies(begin + 1024, size_of::<Doorbell>() as u64, align_of::<Doorbell>());
    let shape = *board.shape();
    let Some(last) = usize::try_from(shape.ranks).ok().and_then(|ranks| ranks.checked_sub(1)) else { return };
    for rank in [0, last / 2, last] {
        for sequence in [0, WAYS - 1, u64::MAX] {
            let line = std::ptr::from_ref(board.arrival(rank, sequence)).addr();
            lies(line, size_of::<ArrivalLine>() as u64, align_of::<ArrivalLine>());
            lies(board.slot(rank, sequence).addr().get(), shape.slot_bytes, 64);
        }
        for mark in [board.done(rank), board.ended(rank)] {
            lies(std::ptr::from_ref(mark).addr(), size_of::<Watermark>() as u64, align_of::<Watermark>());
        }
        lies(board.stage(rank).addr().get(), shape.stage_bytes, 64);
        lies(board.notes(rank).addr().get(), shape.note_bytes, 64);
        if shape.lanes != 0 {
            let (positions, cells) = board.lane(last, rank);
            lies(std::ptr::from_ref(positions).addr(), 256, 128);
            lies(std::ptr::from_ref(cells).addr(), size_of_val(cells) as u64, 128);
            lies(board.bounce(rank).addr().get(), BOUNCE_BYTES as u64, 64);
        }
    }
}
