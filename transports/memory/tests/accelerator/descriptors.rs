//! What is not device memory is not imported.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use windlass_memory::accelerator::{BadDescriptor, Exported};

use super::*;

fn memfd(bytes: &[u8], length: u64, seals: SealFlags) -> OwnedFd {
    let memfd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&memfd, length).unwrap();
    rustix::io::pwrite(&memfd, bytes, 0).unwrap();
    fcntl_add_seals(&memfd, seals).unwrap();
    memfd
}

#[test]
fn a_bad_descriptor_is_a_typed_error() {
    if not_simulated() {
        return;
    }
    let (device, peer) = (Device::moving(Movement::Cooperative), Device::moving(Movement::Cooperative));
    let region = device.region(&pattern(5000, 1));
    let good = device.export(region, 0).unwrap();
    let refused = |descriptor: &OwnedFd, exported: &Exported| match peer
        .accelerator
        .import(descriptor.as_fd(), exported)
    {
        Err(AcceleratorError::BadDescriptor(bad)) => bad,
        other => panic!("imported: {other:?}"),
    };
    let (pipe, _other_end) = rustix::pipe::pipe().unwrap();
    assert_eq!(refused(&pipe, &good.exported), BadDescriptor::NotMemory);
    let file = OwnedFd::from(std::fs::File::open(std::env::current_exe().unwrap()).unwrap());
    assert!(matches!(refused(&file, &good.exported), BadDescriptor::NotMemory | BadDescriptor::Unsealed));

    let mut header = vec![0; 4096];
    rustix::io::pread(&good.descriptor, &mut header, 0).unwrap();
    let sealed = SealFlags::SHRINK | SealFlags::GROW;
    assert_eq!(
        refused(&memfd(&header, 1 << 14, SealFlags::empty()), &good.exported),
        BadDescriptor::Unsealed
    );
    let short = |needed_bytes, bytes| BadDescriptor::TooShort { needed_bytes, bytes };
    assert_eq!(refused(&memfd(&[], 100, sealed), &good.exported), short(4096, 100));
    assert_eq!(refused(&memfd(&[], 1 << 14, sealed), &good.exported), BadDescriptor::WrongHeader);
    assert_eq!(
        refused(&memfd(&header, 8192, sealed), &good.exported),
        short(good.exported.offset + 5000, 8192)
    );
    for at in [0, 7, 25] {
        let mut header = header.clone();
        header[at] ^= 0x80;
        let bad = refused(&memfd(&header, 1 << 14, sealed), &good.exported);
        assert!(matches!(bad, BadDescriptor::WrongHeader | BadDescriptor::OtherMemory), "byte {at}: {bad}");
    }

    let other = |change: fn(&mut Exported)| {
        let mut exported = good.exported;
        change(&mut exported);
        refused(&good.descriptor, &exported)
    };
    assert_eq!(other(|e| e.generation = 1), BadDescriptor::OtherMemory);
    assert_eq!(other(|e| e.region = Region::new(3, 3)), BadDescriptor::OtherMemory);
    assert_eq!(other(|e| e.offset = 0), BadDescriptor::OtherMemory);
    let end = good.exported.offset + 5000;
    assert_eq!(other(|e| e.bytes += 1), short(end + 1, end));
    assert_eq!(other(|e| e.bytes = u64::MAX), short(u64::MAX, end));
    peer.import(&good).unwrap();
}

#[test]
fn an_import_outlives_its_descriptor_and_shares_the_memory() {
    let (device, peer) = (Device::moving(Movement::Cooperative), Device::moving(Movement::Cooperative));
    let region = device.region(&[0; 100]);
    let import = peer.import_from(&device, region);
    peer.accelerator.write(imported(import, 10), &[7; 5]).unwrap();
    assert_eq!(device.bytes(region)[8..17], [0, 0, 7, 7, 7, 7, 7, 0, 0]);
}
