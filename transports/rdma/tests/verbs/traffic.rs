//! What a connection carries.

use windlass_rdma::choice::{Facts, Wishes, choose};
use windlass_rdma::verbs::{
    Access, CompletionQueue, Device, DmaBufSupport, Kind, Local, Place, Read, Sge, State, Verbs, Write,
};

use crate::rig::{Pages, Pair, device, place, sge, write};

const BYTES: usize = 64 << 10;

#[test]
fn a_write_brings_its_bytes_and_its_immediate() {
    let Some(mut pair) = Pair::connected() else { return };
    let (source, target) = (Pages::new(BYTES), Pages::new(BYTES));
    source.fill(7);
    let from = source.register(&pair.a.device, Access::LOCAL_READ);
    let to = target.register(&pair.b.device, Access::REMOTE_WRITE);
    pair.b.queue_pair.post_receive(42).unwrap();
    let source_of = sge(&from);
    // SAFETY: both regions outlive the work.
    unsafe { pair.a.queue_pair.post_write(&write(&source_of, place(&to), Some(0xc0ff_ee01))) }.unwrap();
    let received = pair.b.next();
    assert_eq!((received.id, received.queue_pair), (42, pair.b.queue_pair.number()));
    assert_eq!(received.outcome, Ok(Kind::Receive { immediate: Some(0xc0ff_ee01), bytes: BYTES as u32 }));
    assert!(target.holds(0, BYTES, 7));
    let sent = pair.a.next();
    assert_eq!((sent.id, sent.queue_pair, sent.outcome), (1, pair.a.queue_pair.number(), Ok(Kind::Write)));
    // Back again, by a read.
    source.fill(0);
    drop(from);
    let back = source.register(&pair.a.device, Access::LOCAL_WRITE);
    let read = Read { id: 9, local: &[sge(&back)], remote: place(&to) };
    // SAFETY: both regions outlive the work.
    unsafe { pair.a.queue_pair.post_read(&read) }.unwrap();
    assert!(pair.a.next().outcome.is_err(), "the target was registered for writes only");
    pair.recycle();
    drop(to);
    let to = target.register(&pair.b.device, Access::REMOTE_WRITE | Access::REMOTE_READ);
    let read = Read { id: 10, local: &[sge(&back)], remote: place(&to) };
    // SAFETY: both regions outlive the work.
    unsafe { pair.a.queue_pair.post_read(&read) }.unwrap();
    let read = pair.a.next();
    assert_eq!((read.id, read.outcome), (10, Ok(Kind::Read)));
    assert!(source.holds(0, BYTES, 7));
}

#[test]
fn inline_bytes_and_writes_of_none() {
    let Some(mut pair) = Pair::connected() else { return };
    let target = Pages::new(4096);
    let to = target.register(&pair.b.device, Access::REMOTE_WRITE);
    let inline = pair.a.queue_pair.capacities().inline_bytes as usize;
    assert!(inline >= 8, "this NIC has no inline writes");
    pair.b.queue_pair.post_receives(3, 3).unwrap();
    // The bytes are gone when the NIC gets to it.
    pair.a.queue_pair.post_inline(1, &vec![5; inline], place(&to), Some(1), false).unwrap();
    let next = Place { address: to.address() + inline as u64, key: to.remote_key() };
    pair.a.queue_pair.post_inline(2, &[6; 8], next, Some(2), true).unwrap();
    // Nothing is written, so the place is nowhere.
    let nothing = Write {
        id: 3,
        local: Local::Pieces(&[]),
        remote: Place { address: 0, key: 0 },
        immediate: Some(3),
        signalled: true,
    };
    // SAFETY: there is no memory.
    unsafe { pair.a.queue_pair.post_write(&nothing) }.unwrap();
    for (immediate, bytes) in [(1, inline as u32), (2, 8), (3, 0)] {
        assert_eq!(pair.b.succeeds(), Kind::Receive { immediate: Some(immediate), bytes });
    }
    assert!(target.holds(0, inline, 5) && target.holds(inline, 8, 6) && target.holds(inline + 8, 8, 0));
    assert_eq!((pair.a.next().id, pair.a.next().id), (2, 3), "what is not signalled is not told");
}

#[test]
fn many_writes_by_one_call_in_their_order() {
    let Some(mut pair) = Pair::connected() else { return };
    let (source, target) = (Pages::new(4096), Pages::new(40 * 4096));
    source.fill(9);
    let from = source.register(&pair.a.device, Access::LOCAL_READ);
    let to = target.register(&pair.b.device, Access::REMOTE_WRITE);
    pair.b.queue_pair.post_receives(0, 40).unwrap();
    // Each of two pieces.
    let pieces = [
        Sge { address: from.address(), bytes: 4000, key: from.local_key() },
        Sge { address: from.address() + 7, bytes: 96, key: from.local_key() },
    ];
    let writes: Vec<_> = (0..40_u64)
        .map(|i| Write {
            id: i,
            local: Local::Pieces(&pieces),
            remote: Place { address: to.address() + 4096 * i, key: to.remote_key() },
            immediate: Some(i as u32),
            signalled: i == 39,
        })
        .collect();
    // SAFETY: both regions outlive the work.
    unsafe { pair.a.queue_pair.post_writes(&writes) }.unwrap();
    for i in 0..40 {
        assert_eq!(pair.b.succeeds(), Kind::Receive { immediate: Some(i), bytes: 4096 });
    }
    assert!(target.holds(0, 40 * 4096, 9));
    assert_eq!(pair.a.next().id, 39);
}

#[test]
fn a_full_queue_says_how_much_it_took() {
    let Some(mut pair) = Pair::connected() else { return };
    let (source, target) = (Pages::new(4096), Pages::new(4096));
    let from = source.register(&pair.a.device, Access::LOCAL_READ);
    let to = target.register(&pair.b.device, Access::REMOTE_WRITE);
    let room = pair.a.queue_pair.capacities().sends as usize;
    let source_of = sge(&from);
    let writes = vec![write(&source_of, place(&to), None); room + 200];
    // SAFETY: both regions outlive the work.
    let error = unsafe { pair.a.queue_pair.post_writes(&writes) }.unwrap_err();
    assert!(error.is_full() && (room..room + 200).contains(&error.posted), "{error} of {}", writes.len());
    for _ in 0..error.posted {
        assert_eq!(pair.a.succeeds(), Kind::Write);
    }
    // SAFETY: as above.
    unsafe { pair.a.queue_pair.post_write(&writes[0]) }.unwrap();
    assert_eq!(pair.a.succeeds(), Kind::Write);
}

#[test]
fn queue_pairs_tell_their_state() {
    let Some(mut pair) = Pair::unconnected() else { return };
    assert_eq!(pair.a.queue_pair.state(), Ok(State::Reset));
    let before = pair.a.queue_pair.address();
    pair.a.queue_pair.initialize().unwrap();
    assert_eq!(pair.a.queue_pair.state(), Ok(State::Init));
    pair.b.queue_pair.initialize().unwrap();
    pair.a.queue_pair.ready(&pair.b.queue_pair.address(), windlass_rdma::verbs::Timing::default()).unwrap();
    assert_eq!(pair.a.queue_pair.state(), Ok(State::ReadyToSend));
    // Twice is once too often.
    assert_eq!(pair.a.queue_pair.initialize().unwrap_err().errno, libc::EINVAL);
    pair.a.queue_pair.to_error().unwrap();
    assert_eq!(pair.a.queue_pair.state(), Ok(State::Error));
    pair.a.queue_pair.reset().unwrap();
    pair.a.queue_pair.reset().unwrap();
    assert_eq!(pair.a.queue_pair.state(), Ok(State::Reset));
    let after = pair.a.queue_pair.address();
    assert_eq!((before.number, before.gid), (after.number, after.gid));
    assert_ne!(
        before.first_packet, after.first_packet,
        "late packets of the old connection are not the new one's"
    );
}

#[test]
fn devices_are_found_opened_and_chosen() {
    let Some((device, attachment)) = device() else { return };
    let verbs = Verbs::load().unwrap();
    let facts = Facts::gather(&verbs).unwrap();
    assert!(facts.devices.iter().any(|found| found.name == *device.name()));
    for found in &facts.devices {
        let ports = found.ports.as_ref().unwrap();
        assert!(!ports.is_empty() && ports.iter().all(|(_, gids)| !gids.is_empty()), "{found:?}");
    }
    let choice = choose(&facts, &Wishes::default()).unwrap();
    for rail in &choice.rails {
        assert!(facts.addresses.contains(&rail.gid.ip()), "{rail:?} is not of this host");
    }
    println!("{choice:#?}");
    let all = choice.rails.len() + choice.rejected.len();
    assert_eq!(all, facts.devices.len(), "each device, of one port, is used or rejected");
    // In the testbed, the other hosts' devices are seen, too.
    if let Ok(hosts) = std::env::var("WINDLASS_TESTBED_HOSTS") {
        let here = std::env::var("WINDLASS_TESTBED_HOST").unwrap();
        assert!(choice.rails.iter().all(|r| r.device.starts_with(&format!("rxe{here}_"))), "{choice:?}");
        assert!(choice.rejected.len() >= hosts.split(',').count() - 1);
        assert_eq!(device.dmabuf_support(), DmaBufSupport::Yes);
        assert!(verbs.has_dmabuf());
    }
    assert_eq!(attachment.mtu, device.ports().unwrap()[usize::from(attachment.port) - 1].mtu);
    assert_eq!(Device::open(&verbs, "no such device").unwrap_err().errno, libc::ENODEV);
    assert!(device.port(77).is_err() && device.attachment(attachment.port, 99).is_err());
    let (entries, _) = device.most().unwrap();
    assert!(CompletionQueue::create(&device, entries.saturating_add(1).saturating_mul(2), None).is_err());
}
