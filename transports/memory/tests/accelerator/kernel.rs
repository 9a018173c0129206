//! Memory of the kernel's exporters: each where its device node is, which inside the testbed all are.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use windlass_memory::accelerator::kernel::KernelAccelerator;
use windlass_memory::accelerator::{BadDescriptor, NAMES, OpenError};

use super::*;

const BYTES: u64 = 300_001;

/// One that is there; else why not is printed.
fn opened(name: &str, options: Options) -> Option<KernelAccelerator> {
    let begin = std::time::Instant::now();
    loop {
        match KernelAccelerator::open(name, options.clone()) {
            Ok(device) => return Some(device),
            // Another test has it, and so has whoever holds what it exported.
            Err(OpenError::NoDevice { errno: libc::EBUSY, .. })
                if begin.elapsed() < Duration::from_secs(60) =>
            {
                std::thread::sleep(TICK);
            }
            Err(OpenError::NoDevice { accelerator, node, .. }) => {
                println!("skipped: {accelerator}: no {node}");
                return None;
            }
            Err(other) => panic!("{other}"),
        }
    }
}

fn until(mut holds: impl FnMut() -> bool) {
    let begin = std::time::Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing happens");
        std::thread::yield_now();
    }
}

fn outcome(fence: &Fence) -> Outcome {
    until(|| fence.is_done());
    fence.outcome().unwrap().clone()
}

fn own(region: Region, offset: u64) -> Operand {
    Operand { place: Place::Own(region, 0), offset }
}

fn all(device: &dyn Accelerator, region: Region, bytes: u64) -> Export {
    device.export(DeviceRange { region, generation: 0, offset: 0, bytes }).unwrap()
}

fn copy(device: &dyn Accelerator, from: Operand, to: Operand, bytes: u64) -> Result<Fence, AcceleratorError> {
    let combine = Combine::copy(DataType::U8);
    device.submit(&Work { combine, divisor: 1, count: bytes, inputs: &[from], outputs: &[to], after: None })
}

#[test]
fn each_exports_memory_that_peers_map_and_engines_work_on() {
    for name in ["testbed", "dma-heap", "udmabuf"] {
        let (Some(device), Some(peer)) = (opened(name, Options::default()), opened(name, Options::default()))
        else {
            continue;
        };
        let region = device.allocate(BYTES).unwrap();
        let there = peer.allocate(BYTES).unwrap();
        device.write(own(region, 1), &pattern(BYTES as usize - 1, 3)).unwrap();
        let export = all(&device, region, BYTES);
        assert!(export.exported.offset > 4096, "nothing begins at zero");
        let import = peer.import(export.descriptor.as_fd(), &export.exported).unwrap();
        let fence = copy(&peer, imported(import, 1), own(there, 0), BYTES - 1).unwrap();
        assert_eq!(outcome(&fence), Ok(()));
        let mut bytes = vec![0; BYTES as usize - 1];
        peer.read(own(there, 0), &mut bytes).unwrap();
        assert!(bytes == pattern(BYTES as usize - 1, 3), "{name}");
        device.free(region).unwrap();
        let gone = copy(&peer, imported(import, 0), own(there, 0), 1).unwrap();
        assert!(matches!(outcome(&gone), Err(AcceleratorError::Stale { .. })), "{name}");
    }
}

#[test]
fn what_never_moves_refuses_to() {
    for name in ["dma-heap", "udmabuf", "habanalabs"] {
        let rates = Options { moves_per_second: 1.0, ..Options::default() };
        match KernelAccelerator::open(name, rates) {
            Err(OpenError::NoDevice { node, .. }) => println!("skipped: {name}: {node}"),
            refused => assert!(matches!(refused, Err(OpenError::NeverMoves { .. })), "{refused:?}"),
        }
        let revocable = Options { movement: Movement::Revocable, ..Options::default() };
        let Some(device) = opened(name, revocable) else { continue };
        assert_eq!(device.movement(), Movement::Pinned);
        let region = device.allocate(BYTES).unwrap();
        assert_eq!(device.move_now(region), Err(AcceleratorError::NeverMoves));
        assert_eq!(device.revoke_now(region, Contents::Lost), Err(AcceleratorError::NeverMoves));
    }
}

#[test]
fn an_unknown_name_lists_the_known_ones() {
    let error = windlass_memory::accelerator::open("gaudi", Options::default()).unwrap_err().to_string();
    assert!(NAMES.iter().all(|name| error.contains(name)), "{error}");
}

fn refused(device: &dyn Accelerator, descriptor: BorrowedFd<'_>, offset: u64, bytes: u64) -> BadDescriptor {
    match device.adopt(descriptor, offset, bytes) {
        Err(AcceleratorError::BadDescriptor(bad)) => bad,
        other => panic!("adopted: {other:?}"),
    }
}

/// A dma-buf of somebody else's, if this machine has any: one of 64 KiB.
fn somebodys() -> Option<OwnedFd> {
    let exporter = opened("udmabuf", Options::default())?;
    let region = exporter.allocate(56 << 10).unwrap();
    // Alive for as long as its descriptor is.
    Some(all(&exporter, region, 56 << 10).descriptor)
}

#[test]
fn another_exporter_s_memory_is_adopted_and_bad_descriptors_are_not() {
    let Some(device) = opened("dma-heap", Options::default()) else { return };
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    assert_eq!(refused(&device, pipe.as_fd(), 0, 1), BadDescriptor::NotDmaBuf);
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    assert_eq!(refused(&device, file.as_fd(), 0, 1), BadDescriptor::NotDmaBuf);
    // SAFETY: nothing is done through it: that it is not open is what is to be found.
    let closed = unsafe { BorrowedFd::borrow_raw(1 << 20) };
    assert_eq!(refused(&device, closed, 0, 1), BadDescriptor::Closed);
    let Some(theirs) = somebodys() else { return };
    let short = |needed_bytes| BadDescriptor::TooShort { needed_bytes, bytes: 64 << 10 };
    assert_eq!(refused(&device, theirs.as_fd(), 60 << 10, 4097), short((64 << 10) + 1));
    assert_eq!(refused(&device, theirs.as_fd(), u64::MAX, 2), short(u64::MAX));

    let region = device.adopt(theirs.as_fd(), 4096 + 12, 1000).unwrap();
    let again = device.adopt(theirs.as_fd(), 4096 + 512, 1000).unwrap();
    device.write(own(region, 0), &pattern(1000, 5)).unwrap();
    let overlap = copy(&device, own(region, 0), own(again, 0), 600).unwrap_err();
    assert_eq!(overlap, AcceleratorError::Overlap { output: 0 }, "two names, one memory");
    assert_eq!(device.move_now(region), Err(AcceleratorError::NeverMoves));
    let beyond = device.export(DeviceRange { region, generation: 0, offset: 1, bytes: 1000 }).unwrap_err();
    assert_eq!(beyond, AcceleratorError::OutOfRange { region, offset: 1, bytes: 1000, limit: 1000 });
    // A peer imports it as it does any other.
    let export = all(&device, region, 1000);
    assert_eq!(export.exported.offset, 4096 + 12);
    let peer = opened("dma-heap", Options::default()).unwrap();
    let there = peer.allocate(1000).unwrap();
    drop(theirs);
    let import = peer.import(export.descriptor.as_fd(), &export.exported).unwrap();
    outcome(&copy(&peer, imported(import, 0), own(there, 0), 1000).unwrap()).unwrap();
    let mut bytes = [0; 1000];
    peer.read(own(there, 0), &mut bytes).unwrap();
    assert_eq!(bytes[..], pattern(1000, 5));
    device.free(region).unwrap();
    assert_eq!(device.free(region), Err(AcceleratorError::UnknownRegion(region)));
}

#[test]
fn the_simulated_one_adopts_nothing() {
    let device = SimulatedAccelerator::new(Options::default());
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    assert_eq!(refused(&device, pipe.as_fd(), 0, 1), BadDescriptor::NotDmaBuf);
    let Some(theirs) = somebodys() else { return };
    assert_eq!(device.adopt(theirs.as_fd(), 0, 1), Err(AcceleratorError::AdoptsNothing));
}

/// The processor does not reach it, a NIC would: what needs an engine is refused, what does not is not.
#[test]
fn a_gaudi_s_memory_is_exported_and_nobody_here_looks_at_it() {
    let Some(device) = opened("habanalabs", Options::default()) else { return };
    let region = device.allocate(BYTES).unwrap();
    let unreachable = Err(AcceleratorError::Unreachable { region });
    assert_eq!(device.write(own(region, 0), &[1]), unreachable);
    assert_eq!(device.read(own(region, 0), &mut [0]), unreachable);
    assert_eq!(copy(&device, own(region, 0), own(region, 9), 1).map(drop), unreachable);
    let export = all(&device, region, BYTES);
    let length = rustix::fs::seek(&export.descriptor, rustix::fs::SeekFrom::End(0)).unwrap();
    assert!(length >= BYTES && length.is_multiple_of(4096));
    // A peer holds what is freed: it goes with the peer's descriptor, and until then the device has less.
    device.free(region).unwrap();
    let most = (64 << 20) - length;
    assert!(matches!(device.allocate(most + 4096), Err(AcceleratorError::OutOfMemory { .. })));
    drop(export);
    let whole = device.allocate(64 << 20).unwrap();
    device.free(whole).unwrap();
}

/// Whoever holds a descriptor may revoke it: as a driver's reset does, without a word to the owner.
fn revoke(descriptor: &OwnedFd) {
    let node = std::fs::File::options().read(true).write(true).open("/dev/windlass_accelerator").unwrap();
    let mut request = [descriptor.as_raw_fd(), 0];
    // SAFETY: the request, `_IOW('W', 0x42, …)`, reads the eight bytes of its argument.
    let result = unsafe { libc::ioctl(node.as_raw_fd(), 0x4008_5742, request.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_revoke_by_somebody_else_strikes_work_and_is_noticed() {
    let stepped = || Options { drive: Drive::Stepped, chunk_bytes: 1000, ..Options::default() };
    let (Some(device), Some(peer)) = (opened("testbed", stepped()), opened("testbed", stepped())) else {
        return;
    };
    let notices = Arc::new(Notices::new(64, || {}));
    device.listen(Arc::clone(&notices));
    let region = device.allocate(BYTES).unwrap();
    device.write(own(region, 0), &pattern(BYTES as usize, 1)).unwrap();
    let there = peer.allocate(BYTES).unwrap();
    let export = all(&device, region, BYTES);
    let import = peer.import(export.descriptor.as_fd(), &export.exported).unwrap();
    let work = copy(&peer, imported(import, 0), own(there, 0), BYTES).unwrap();
    (0..3).for_each(|_| assert!(peer.step(TICK).at_once));
    revoke(&export.descriptor);
    while !work.is_done() {
        peer.step(TICK);
    }
    let stale = AcceleratorError::Stale { region, generation: 0 };
    assert_eq!(work.outcome(), Some(&Err(stale.clone())), "it outlives its memory, and says so");
    let late = peer.import(export.descriptor.as_fd(), &export.exported).unwrap_err();
    assert_eq!(late, stale);
    // The owner looks now and then.
    for tick in 0..100 {
        device.step(TICK * tick);
    }
    let heard: Vec<Notice> = std::iter::from_fn(|| notices.pop()).collect();
    let replaced = Notice::Replaced { region, generation: 1, contents: Contents::Lost };
    assert_eq!(heard, [Notice::Revoked { region, generation: 0 }, replaced]);
    assert_eq!(device.write(Operand { place: Place::Own(region, 1), offset: 0 }, &[7]), Ok(()));
}

/// Moves and revokes by the dozen under two engines: what ended well is there, and the device saw nobody come too late.
#[test]
fn every_mode_of_the_testbed_keeps_what_ended_well() {
    for movement in [Movement::Transparent, Movement::Cooperative, Movement::Pinned, Movement::Revocable] {
        let options = Options { movement, drive: Drive::Stepped, ..Options::default() };
        let (Some(device), Some(peer)) = (opened("testbed", options.clone()), opened("testbed", options))
        else {
            return;
        };
        let notices = Arc::new(Notices::new(64, || {}));
        device.listen(Arc::clone(&notices));
        let region = device.allocate(BYTES).unwrap();
        let there = peer.allocate(BYTES).unwrap();
        for round in 0..20u8 {
            let generation = device.status(region).unwrap().generation;
            let place = Place::Own(region, generation);
            let range = DeviceRange { region, generation, offset: 0, bytes: BYTES };
            let export = device.export(range).unwrap();
            let import = peer.import(export.descriptor.as_fd(), &export.exported).unwrap();
            peer.write(own(there, 0), &pattern(BYTES as usize, round)).unwrap();
            let work = copy(&peer, own(there, 0), imported(import, 0), BYTES).unwrap();
            while !work.is_done() {
                peer.step(TICK);
            }
            assert_eq!(work.outcome(), Some(&Ok(())));
            device.move_now(region).unwrap();
            let mut asked = None;
            for tick in 0..3 {
                device.step(TICK * (u32::from(round) * 10 + tick));
                while let Some(notice) = notices.pop() {
                    if let Notice::MoveAsked { ticket, .. } = notice {
                        asked = Some(ticket);
                        if movement == Movement::Pinned {
                            let pinned = AcceleratorError::StillPinned { region, pins: 1 };
                            assert_eq!(device.acknowledge(ticket), Err(pinned));
                        }
                        peer.release(import).unwrap();
                        device.acknowledge(ticket).unwrap();
                    }
                }
            }
            assert_eq!(asked.is_some(), matches!(movement, Movement::Cooperative | Movement::Pinned));
            let now = device.status(region).unwrap();
            assert_eq!(now.condition, windlass_memory::accelerator::Condition::Active);
            let stays = movement == Movement::Transparent;
            assert_eq!((now.generation, now.contents), (generation + u32::from(!stays), Contents::Preserved));
            let mut bytes = vec![0; BYTES as usize];
            let place = if stays { place } else { Place::Own(region, now.generation) };
            device.read(Operand { place, offset: 0 }, &mut bytes).unwrap();
            assert!(bytes == pattern(BYTES as usize, round), "{movement:?}, round {round}");
            if movement == Movement::Revocable {
                let old = copy(&peer, own(there, 0), imported(import, 0), 1).unwrap();
                while !old.is_done() {
                    peer.step(TICK);
                }
                assert_eq!(old.outcome(), Some(&Err(AcceleratorError::Stale { region, generation })));
            }
            if asked.is_none() {
                peer.release(import).unwrap();
            }
        }
        let counters = device.counters();
        assert_eq!((counters.moves + counters.revokes, counters.breaches), (20, 0), "{movement:?}");
        assert_eq!(device.stale_stores(), Some(0));
    }
}
