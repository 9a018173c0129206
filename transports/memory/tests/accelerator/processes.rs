//! Two processes: the descriptor travels over a socket, the memory does not travel at all.
//!
//! The other process is this test binary again, running [`the_other_process`] with its socket as standard input.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use windlass_memory::accelerator::Exported;
use windlass_memory::accelerator::simulated::Breach;

use super::*;

const OTHER: &str = "WINDLASS_TEST_OTHER_PROCESS";
const COUNT: u64 = 5000;

fn send(socket: BorrowedFd<'_>, byte: u8, export: Option<&Export>) {
    let wire = export.map_or([0; Exported::WIRE_BYTES], |export| export.exported.to_wire());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = export.iter().map(|export| export.descriptor.as_fd()).collect();
    if !descriptors.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    }
    sendmsg(socket, &[IoSlice::new(&[byte]), IoSlice::new(&wire)], &mut ancillary, SendFlags::NOSIGNAL)
        .unwrap();
}

fn receive(socket: BorrowedFd<'_>) -> (u8, Option<Export>) {
    let (mut byte, mut wire) = ([0], [0; Exported::WIRE_BYTES]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut byte), IoSliceMut::new(&mut wire)];
    let message = recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert_eq!(message.bytes, 1 + wire.len(), "the other process has ended");
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let exported = Exported::from_wire(&wire).expect("the range is of a descriptor");
    (byte[0], descriptor.map(|descriptor| Export { descriptor, exported }))
}

fn other_process(role: &str) -> (Child, OwnedFd) {
    let (here, there) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::the_other_process", "--nocapture"])
        .env(OTHER, role)
        .stdin(Stdio::from(there))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    (child, here)
}

/// Not a test of its own. Adds 1 to every element of what it is sent, as often as it is asked, until told to stop.
#[test]
fn the_other_process() {
    let Ok(role) = std::env::var(OTHER) else { return };
    let device = Device::new(Options { guarded: role != "liar", chunk_bytes: 1000, ..Options::default() });
    let ones = device.region(&1i32.to_le_bytes().repeat(COUNT as usize));
    let stdin = std::io::stdin();
    let mut import = None;
    loop {
        let code = match receive(stdin.as_fd()) {
            (b'i', Some(export)) => {
                let new = device.import(&export);
                let code = if new.is_ok() { b'k' } else { b's' };
                if let Some(old) = std::mem::replace(&mut import, new.ok()) {
                    device.accelerator.release(old).unwrap();
                }
                code
            }
            (command @ (b'+' | b'h'), _) => {
                let place = imported(import.unwrap(), 0);
                let fence = device.add(&[place, device.own(ones, 0)], place, COUNT);
                if command == b'h' {
                    // Halfway, and no further.
                    for _ in 0..5 {
                        device.step();
                    }
                    send(stdin.as_fd(), b'k', None);
                    assert_eq!(receive(stdin.as_fd()).0, b'g');
                }
                match device.outcome(&fence) {
                    Ok(()) => b'k',
                    Err(AcceleratorError::Stale { .. }) => b's',
                    Err(other) => panic!("{other}"),
                }
            }
            _ => return,
        };
        send(stdin.as_fd(), code, None);
    }
}

fn ask(socket: &OwnedFd, command: u8, export: Option<&Export>) -> char {
    send(socket.as_fd(), command, export);
    char::from(receive(socket.as_fd()).0)
}

fn values(device: &Device, region: Region) -> i32 {
    let bytes = device.bytes(region);
    let first: [u8; 4] = bytes[..4].try_into().unwrap();
    assert!(bytes == first.repeat(COUNT as usize), "all elements are alike");
    i32::from_le_bytes(first)
}

#[test]
fn another_process_reduces_in_memory_that_moves_and_is_revoked() {
    let device = Device::moving(Movement::Cooperative);
    let region = device.region(&0i32.to_le_bytes().repeat(COUNT as usize));
    let (mut child, socket) = other_process("honest");
    let old = device.export(region, 0).unwrap();
    assert_eq!(ask(&socket, b'i', Some(&old)), 'k');
    assert_eq!((ask(&socket, b'+', None), values(&device, region)), ('k', 1));

    device.accelerator.move_now(region).unwrap();
    device.accelerator.acknowledge(device.asked(region)).unwrap();
    device.advance(TICK);
    assert_eq!(ask(&socket, b'+', None), 's', "it finds out by the life word");
    assert_eq!(ask(&socket, b'i', Some(&device.export(region, 1).unwrap())), 'k');
    assert_eq!((ask(&socket, b'+', None), values(&device, region)), ('k', 2));

    // In the middle of its work the memory is revoked: the work ends stale, and its pages are not poisoned under it.
    assert_eq!(ask(&socket, b'h', None), 'k');
    device.accelerator.revoke_now(region, Contents::Preserved).unwrap();
    assert_eq!(ask(&socket, b'g', None), 's');
    device.advance(TICK);
    let three = 3i32.to_le_bytes();
    assert_eq!(device.bytes(region)[..4], three, "what it had stored before was carried on");
    assert_eq!(device.accelerator.audit(), []);

    assert_eq!(ask(&socket, b'i', Some(&old)), 's', "an old descriptor is refused");
    send(socket.as_fd(), b'q', None);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_liar_in_another_process_is_found() {
    if not_simulated() {
        return;
    }
    let device = Device::moving(Movement::Cooperative);
    let region = device.region(&0i32.to_le_bytes().repeat(COUNT as usize));
    let (mut child, socket) = other_process("liar");
    assert_eq!(ask(&socket, b'i', Some(&device.export(region, 0).unwrap())), 'k');
    device.accelerator.move_now(region).unwrap();
    device.accelerator.acknowledge(device.asked(region)).unwrap();
    device.advance(TICK);
    assert_eq!(ask(&socket, b'+', None), 'k');
    assert_eq!(device.accelerator.audit(), [Breach::StaleStore { region, generation: 0, offset: 0 }]);
    assert_eq!(values(&device, region), 0);
    send(socket.as_fd(), b'q', None);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_process_that_dies_at_work_leaves_memory_that_cannot_be_checked() {
    if not_simulated() {
        return;
    }
    let device = Device::moving(Movement::Revocable);
    let region = device.region(&0i32.to_le_bytes().repeat(COUNT as usize));
    let (mut child, socket) = other_process("honest");
    assert_eq!(ask(&socket, b'i', Some(&device.export(region, 0).unwrap())), 'k');
    assert_eq!(ask(&socket, b'h', None), 'k');
    child.kill().unwrap();
    child.wait().unwrap();
    device.accelerator.revoke_now(region, Contents::Preserved).unwrap();
    device.advance(TICK);
    device.advance(Duration::from_secs(11));
    assert_eq!((device.accelerator.audit(), device.accelerator.counters().unchecked), (vec![], 1));
    assert_eq!(device.generation(region), 1, "and yet it moves");
}
