//! Accelerators' memory, registered straight from its descriptor; what moves, and what is taken away.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use windlass_memory::accelerator::kernel::KernelAccelerator;
use windlass_memory::accelerator::{
    Accelerator as _, Condition, Contents, DeviceRange, Movement, Operand, Options, Place as Of,
};
use windlass_rdma::verbs::{Access, MemoryRegion, Place, RegisterError, Status};

use crate::accelerator::{Accelerator, DmaBuf, udmabuf};
use crate::rig::{Pages, Pair, move_over, place, sge};

const BYTES: usize = 64 << 10;

/// How RDMA imports dma-bufs here (`deploy/testbed/run --importer`).
pub(crate) fn importer() -> String {
    std::fs::read_to_string("/sys/module/rdma_rxe/parameters/dmabuf_mode")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn register(pair: &Pair, buffer: &DmaBuf) -> Result<MemoryRegion, RegisterError> {
    MemoryRegion::register_dmabuf(
        &pair.b.device,
        buffer.descriptor(),
        0,
        buffer.bytes,
        0,
        Access::REMOTE_WRITE,
    )
}

/// Writes `value` over all of the buffer and looks.
#[track_caller]
fn works(pair: &mut Pair, source: &Pages, from: &MemoryRegion, buffer: &DmaBuf, value: u8) {
    let to = register(pair, buffer).expect("registered");
    source.fill(value);
    move_over(pair, &sge(from), place(&to)).expect("written");
    assert!(buffer.holds(0, buffer.bytes, value));
}

fn rig() -> Option<(Pair, Pages, MemoryRegion)> {
    let pair = Pair::connected()?;
    let source = Pages::new(BYTES);
    let from = source.register(&pair.a.device, Access::LOCAL_READ);
    Some((pair, source, from))
}

#[test]
fn device_memory_is_written_and_sent_from() {
    let Some((mut pair, source, from)) = rig() else { return };
    let Some(accelerator) = Accelerator::open() else { return };
    let buffer = accelerator.allocate(BYTES as u64);
    works(&mut pair, &source, &from, &buffer, 3);
    if let Some(other) = udmabuf(BYTES) {
        works(&mut pair, &source, &from, &other, 4);
    }
    // From one device to the host.
    let local =
        MemoryRegion::register_dmabuf(&pair.a.device, buffer.descriptor(), 0, BYTES, 0, Access::LOCAL_READ);
    let local = local.unwrap();
    let target = Pages::new(BYTES);
    let to = target.register(&pair.b.device, Access::REMOTE_WRITE);
    move_over(&mut pair, &sge(&local), place(&to)).unwrap();
    assert!(target.holds(0, BYTES, 3));
    // A part of it, under an address that somebody likes.
    let offset = 4096 + 24;
    let address = (1_u64 << 40) + 24;
    let part = MemoryRegion::register_dmabuf(
        &pair.b.device,
        buffer.descriptor(),
        offset,
        8192,
        address,
        Access::REMOTE_WRITE,
    );
    let part = part.unwrap();
    source.fill(5);
    let mut piece = sge(&from);
    piece.bytes = 8192;
    move_over(&mut pair, &piece, Place { address, key: part.remote_key() }).unwrap();
    assert!(buffer.holds(offset as usize, 8192, 5));
    assert!(buffer.holds(0, offset as usize, 3) && buffer.holds(offset as usize + 8192, 64, 3));
}

#[test]
fn what_cannot_be_registered_is_refused_with_the_reason() {
    let Some((pair, ..)) = rig() else { return };
    let Some(accelerator) = Accelerator::open() else { return };
    let buffer = accelerator.allocate(BYTES as u64);
    let register = |descriptor, offset, bytes, address| {
        MemoryRegion::register_dmabuf(
            &pair.b.device,
            descriptor,
            offset,
            bytes,
            address,
            Access::REMOTE_WRITE,
        )
    };
    // Too long, beyond its end, and at another place in the page than the address.
    for (offset, bytes, address) in [
        (0, BYTES + 1, 0),
        (BYTES as u64, 4096, 0),
        (24, 4096, 0),
        (0, 4096, 24),
        (u64::MAX - 7, 4096, u64::MAX - 7),
    ] {
        let error = register(buffer.descriptor(), offset, bytes, address).unwrap_err();
        assert!(matches!(error, RegisterError::Range { .. }), "{offset} {bytes} {address}: {error}");
    }
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let error = register(file.as_fd(), 0, 4096, 0).unwrap_err();
    assert!(matches!(error, RegisterError::NoDmaBuf { .. }), "{error}");
    accelerator.revoke(&buffer).unwrap();
    let error = register(buffer.descriptor(), 0, BYTES, 0).unwrap_err();
    assert!(matches!(error, RegisterError::Revoked { .. }), "{error}");
}

#[test]
fn a_move_costs_a_fault_or_is_refused() {
    let Some((mut pair, source, from)) = rig() else { return };
    let Some(accelerator) = Accelerator::open() else { return };
    let buffer = accelerator.allocate(BYTES as u64);
    let to = register(&pair, &buffer).unwrap();
    for value in 1..=5 {
        source.fill(value);
        move_over(&mut pair, &sge(&from), place(&to)).unwrap();
        let moved = accelerator.shift(&buffer);
        match importer().as_str() {
            "dynamic" => assert!(moved.is_ok(), "{moved:?}"),
            _ => assert_eq!(moved, Err(libc::EBUSY)),
        }
        assert!(buffer.holds(0, BYTES, value));
    }
    assert_eq!(accelerator.stat(&buffer).stale_bytes, 0);
}

#[test]
fn a_revoked_key_dies_and_both_ends_recover() {
    let Some((mut pair, source, from)) = rig() else { return };
    let Some(accelerator) = Accelerator::open() else { return };
    for round in 1..=5 {
        let buffer = accelerator.allocate(BYTES as u64);
        let to = register(&pair, &buffer).unwrap();
        source.fill(round);
        move_over(&mut pair, &sge(&from), place(&to)).unwrap();
        assert!(buffer.holds(0, BYTES, round));
        if importer() == "pinned" {
            // Nobody is told, and writes go on into pages that are no longer the buffer's.
            assert_eq!(accelerator.revoke(&buffer), Err(libc::EBUSY));
            move_over(&mut pair, &sge(&from), place(&to)).unwrap();
            assert!(accelerator.stat(&buffer).stale_bytes > 0);
            continue;
        }
        accelerator.revoke(&buffer).unwrap();
        let failure = move_over(&mut pair, &sge(&from), place(&to)).unwrap_err();
        assert_eq!(failure.status, Status::RemoteAccess);
        pair.recycle();
        to.deregister().unwrap();
        assert_eq!(accelerator.stat(&buffer).stale_bytes, 0);
        assert!(matches!(register(&pair, &buffer).unwrap_err(), RegisterError::Revoked { .. }));
        let anew = accelerator.allocate(BYTES as u64);
        works(&mut pair, &source, &from, &anew, round + 100);
    }
}

/// What a NIC stores until it is told to let go is in what goes on, however late that is.
#[test]
fn revoked_memory_goes_on_when_the_nic_has_let_go() {
    let Some((mut pair, source, from)) = rig() else { return };
    let Some(_) = Accelerator::open() else { return };
    let options = Options { movement: Movement::Revocable, ..Options::default() };
    let accelerator = KernelAccelerator::open("testbed", options).unwrap();
    let region = accelerator.allocate(BYTES as u64).unwrap();
    let range = DeviceRange { region, generation: 0, offset: 0, bytes: BYTES as u64 };
    let export = accelerator.export(range).unwrap();
    let (first, length) = export.exported.pages();
    let (whole, access) = ((first + length) as usize, Access::REMOTE_WRITE);
    let descriptor = export.descriptor.as_fd();
    let to = MemoryRegion::register_dmabuf(&pair.b.device, descriptor, 0, whole, 0, access).unwrap();
    assert_eq!(accelerator.importers(region), Ok(Some(1)));
    accelerator.revoke_now(region, Contents::Preserved).unwrap();
    // Far longer than a copy takes.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(accelerator.status(region).unwrap().condition, Condition::Away);
    source.fill(9);
    let place = Place { address: to.address() + export.exported.offset, key: to.remote_key() };
    move_over(&mut pair, &sge(&from), place).unwrap();
    to.deregister().unwrap();
    let begin = Instant::now();
    while accelerator.status(region).unwrap().condition != Condition::Active {
        assert!(begin.elapsed() < Duration::from_secs(20), "it never came back");
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut bytes = vec![0; BYTES];
    accelerator.read(Operand { place: Of::Own(region, 1), offset: 0 }, &mut bytes).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 9), "what the NIC had stored was lost");
    assert_eq!(accelerator.stale_stores(), Some(0));
}
