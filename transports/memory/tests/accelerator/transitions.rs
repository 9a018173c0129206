//! Every way a region moves, and every answer at every time.

use windlass_memory::accelerator::simulated::Breach;

use super::*;

const BYTES: usize = 10_000;

#[test]
fn a_cooperative_move_asks_waits_and_keeps_the_bytes() {
    let device = Device::new(Options { move_time: 5 * TICK, ..Options::default() });
    let region = device.region(&pattern(BYTES, 1));
    let before = device.export(region, 0).unwrap();
    device.accelerator.move_now(region).unwrap();
    device.accelerator.move_now(region).unwrap();
    device.advance(TICK);
    assert_eq!(device.generation(region), 0, "nothing moves unanswered");
    let ticket = device.asked(region);
    device.accelerator.acknowledge(ticket).unwrap();
    let away = device.accelerator.read(device.own(region, 0), &mut [0]);
    assert_eq!(away, Err(AcceleratorError::Stale { region, generation: 0 }));
    assert_eq!(device.export(region, 0).unwrap_err(), AcceleratorError::Away { region });
    device.advance(4 * TICK);
    assert_eq!(device.notices(), []);
    device.advance(TICK);
    assert_eq!(device.notices(), [Notice::Moved { region, generation: 1, copied: 5 * TICK }]);
    assert_eq!(device.bytes(region), pattern(BYTES, 1));
    let dead = device.import(&before).unwrap_err();
    assert_eq!(dead, AcceleratorError::Stale { region, generation: 0 });
    assert_eq!(device.export(region, 0).unwrap_err(), AcceleratorError::Stale { region, generation: 0 });
    let counters = device.accelerator.counters();
    assert_eq!((counters.moves, counters.bytes_copied, counters.breaches), (1, BYTES as u64, 0));
}

#[test]
fn a_question_has_one_answer_in_its_time() {
    let device = Device::new(Options { patience: 3 * TICK, ..Options::default() });
    let region = device.region(&pattern(BYTES, 1));
    let unknown = |ticket| Err(AcceleratorError::UnknownTicket(ticket));
    assert_eq!(device.accelerator.acknowledge(Ticket::new(99)), unknown(Ticket::new(99)));

    device.accelerator.move_now(region).unwrap();
    let refused = device.asked(region);
    device.accelerator.refuse(refused).unwrap();
    assert_eq!(device.notices(), [Notice::Abandoned { region, generation: 0, ticket: refused }]);
    assert_eq!(device.accelerator.refuse(refused), unknown(refused));
    assert_eq!(device.accelerator.acknowledge(refused), unknown(refused));

    device.accelerator.move_now(region).unwrap();
    let late = device.asked(region);
    assert_ne!(late, refused);
    device.advance(3 * TICK);
    assert_eq!(device.notices(), [Notice::Abandoned { region, generation: 0, ticket: late }]);
    assert_eq!(device.accelerator.acknowledge(late), unknown(late));
    assert_eq!((device.accelerator.counters().refused, device.bytes(region)), (2, pattern(BYTES, 1)));

    device.accelerator.move_now(region).unwrap();
    let ticket = device.asked(region);
    device.accelerator.acknowledge(ticket).unwrap();
    assert_eq!(device.accelerator.acknowledge(ticket), unknown(ticket));
    device.advance(TICK);
    assert_eq!(device.generation(region), 1);
}

#[test]
fn what_is_announced_ahead_can_be_imported_but_not_used_before_the_move() {
    if not_simulated() {
        return;
    }
    let (device, peer) = (
        Device::new(Options { announce_ahead: true, ..Options::default() }),
        Device::moving(Movement::Cooperative),
    );
    let region = device.region(&pattern(BYTES, 1));
    let there = peer.region(&pattern(BYTES, 9));
    device.accelerator.move_now(region).unwrap();
    let notices = device.notices();
    assert_eq!(notices[0], Notice::Announced { region, generation: 1 });
    let Notice::MoveAsked { ticket, generation: 0, .. } = notices[1] else { panic!("{notices:?}") };
    assert_eq!(device.accelerator.status(region).unwrap().announced, Some(1));
    let ahead = peer.import(&device.export(region, 1).unwrap()).unwrap();
    let early = peer.copy(imported(ahead, 0), peer.own(there, 0), 100);
    assert_eq!(peer.outcome(&early), Err(AcceleratorError::Early { region, generation: 1 }));
    device.accelerator.acknowledge(ticket).unwrap();
    device.advance(TICK);
    let copy = peer.copy(imported(ahead, 0), peer.own(there, 0), BYTES as u64);
    assert_eq!((peer.outcome(&copy), peer.bytes(there)), (Ok(()), pattern(BYTES, 1)));

    // A refused move voids what was announced, and its generation is never used.
    device.accelerator.move_now(region).unwrap();
    let void = peer.import(&device.export(region, 2).unwrap()).unwrap();
    device.accelerator.refuse(device.asked(region)).unwrap();
    let stale = peer.copy(imported(void, 0), peer.own(there, 0), 1);
    assert_eq!(peer.outcome(&stale), Err(AcceleratorError::Stale { region, generation: 2 }));
    device.accelerator.move_now(region).unwrap();
    device.accelerator.acknowledge(device.asked(region)).unwrap();
    device.advance(TICK);
    assert_eq!((device.generation(region), device.accelerator.audit()), (3, vec![]));
}

#[test]
fn pinned_memory_moves_only_once_nobody_imports_it() {
    let (device, peer) = (Device::moving(Movement::Pinned), Device::moving(Movement::Pinned));
    let region = device.region(&pattern(BYTES, 1));
    let there = peer.region(&[0; BYTES]);
    let import = peer.import_from(&device, region);
    device.accelerator.move_now(region).unwrap();
    let ticket = device.asked(region);
    let pinned = Err(AcceleratorError::StillPinned { region, pins: 1 });
    assert_eq!(device.accelerator.acknowledge(ticket), pinned);
    let copy = peer.copy(imported(import, 0), peer.own(there, 0), BYTES as u64);
    peer.accelerator.release(import).unwrap();
    assert_eq!(peer.accelerator.release(import), Err(AcceleratorError::UnknownImport(import)));
    assert_eq!(device.accelerator.acknowledge(ticket), pinned, "queued work holds it too");
    assert_eq!((peer.outcome(&copy), peer.bytes(there)), (Ok(()), pattern(BYTES, 1)));
    device.accelerator.acknowledge(ticket).unwrap();
    device.advance(TICK);
    let notices = device.notices();
    // The kernel copies within the acknowledgement, the simulated one after it.
    let [Notice::Moved { region: moved, generation: 1, .. }] = notices[..] else { panic!("{notices:?}") };
    assert_eq!((moved, device.bytes(region)), (region, pattern(BYTES, 1)));
}

#[test]
fn a_revoke_comes_without_a_question_and_says_what_became_of_the_bytes() {
    for movement in [Movement::Revocable, Movement::Cooperative, Movement::Pinned, Movement::Transparent] {
        let (device, peer) = (Device::moving(movement), Device::moving(movement));
        let region = device.region(&pattern(BYTES, 1));
        let import = peer.import_from(&device, region);
        let there = peer.region(&pattern(BYTES, 2));
        for (generation, contents) in [(0, Contents::Preserved), (1, Contents::Lost)] {
            device.accelerator.revoke_now(region, contents).unwrap();
            let again = device.accelerator.revoke_now(region, contents);
            assert_eq!(again, Err(AcceleratorError::Away { region }));
            assert_eq!(device.notices(), [Notice::Revoked { region, generation }]);
            let stale = peer.copy(peer.own(there, 0), imported(import, 0), 4);
            assert_eq!(peer.outcome(&stale), Err(AcceleratorError::Stale { region, generation: 0 }));
            device.advance(TICK);
            let generation = generation + 1;
            assert_eq!(device.notices(), [Notice::Replaced { region, generation, contents }]);
            assert_eq!(device.accelerator.status(region).unwrap().contents, contents);
            assert_eq!(device.bytes(region) == pattern(BYTES, 1), contents == Contents::Preserved);
        }
        assert_eq!((device.accelerator.counters().revokes, device.accelerator.audit()), (2, vec![]));
    }
}

#[test]
fn a_transparent_move_is_only_latency() {
    if not_simulated() {
        return;
    }
    let device =
        Device::new(Options { move_time: 5 * TICK, movement: Movement::Transparent, ..Options::default() });
    let peer = Device::moving(Movement::Transparent);
    let (region, there) = (device.region(&pattern(BYTES, 1)), peer.region(&[0; BYTES]));
    let import = peer.import_from(&device, region);
    device.accelerator.move_now(region).unwrap();
    let copy = peer.copy(imported(import, 0), peer.own(there, 0), BYTES as u64);
    let other = peer.copy(peer.own(there, 0), peer.own(there, 5000), 100);
    peer.advance(TICK);
    assert!(!copy.is_done() && other.is_done(), "only what touches the region waits");
    assert_eq!(
        device.accelerator.read(device.own(region, 0), &mut [0]),
        Err(AcceleratorError::Away { region })
    );
    device.advance(5 * TICK);
    assert_eq!((peer.outcome(&copy), peer.bytes(there)), (Ok(()), pattern(BYTES, 1)));
    assert_eq!((device.generation(region), device.notices()), (0, vec![]));
    assert_eq!((device.accelerator.counters().moves, device.accelerator.audit()), (1, vec![]));
}

#[test]
fn a_transparent_move_waits_for_the_engines_at_work() {
    if not_simulated() {
        return;
    }
    let options = Options { movement: Movement::Transparent, chunk_bytes: 1000, ..Options::default() };
    let device = Device::new(options);
    let (from, to) = (device.region(&pattern(BYTES, 1)), device.region(&[0; BYTES]));
    let copy = device.copy(device.own(from, 0), device.own(to, 0), BYTES as u64);
    device.step();
    device.accelerator.move_now(to).unwrap();
    assert!(!copy.is_done());
    assert_eq!((device.outcome(&copy), device.bytes(to)), (Ok(()), pattern(BYTES, 1)));
    assert_eq!(device.accelerator.counters().moves, 1);
}

#[test]
fn a_revoke_in_the_middle_of_work_makes_it_stale_and_the_work_can_be_done_again() {
    let device =
        Device::new(Options { movement: Movement::Revocable, chunk_bytes: 1000, ..Options::default() });
    let (from, to) = (device.region(&pattern(BYTES, 1)), device.region(&pattern(BYTES, 2)));
    for revoked in [from, to] {
        let copy = device.copy(device.own(from, 0), device.own(to, 0), BYTES as u64);
        (0..3).for_each(|_| assert!(device.step()));
        let generation = device.generation(revoked);
        device.accelerator.revoke_now(revoked, Contents::Preserved).unwrap();
        assert_eq!(device.outcome(&copy), Err(AcceleratorError::Stale { region: revoked, generation }));
        device.advance(TICK);
        let mut whole = pattern(BYTES, 2);
        whole[..3000].copy_from_slice(&pattern(BYTES, 1)[..3000]);
        assert!(device.bytes(to) == whole, "what was stored before the revoke was carried on");
        let again = device.copy(device.own(from, 0), device.own(to, 0), BYTES as u64);
        assert_eq!((device.outcome(&again), device.bytes(to)), (Ok(()), pattern(BYTES, 1)));
        device.accelerator.write(device.own(to, 0), &pattern(BYTES, 2)).unwrap();
    }
    assert_eq!(device.accelerator.audit(), [], "whoever finds out in time has broken no rule");
}

#[test]
fn freed_in_every_condition() {
    type To = fn(&Device, Region);
    let active: To = |_, _| {};
    let asked: To = |device, region| device.accelerator.move_now(region).unwrap();
    let away: To = |device, region| device.accelerator.revoke_now(region, Contents::Preserved).unwrap();
    for movement in [Movement::Revocable, Movement::Cooperative, Movement::Pinned, Movement::Transparent] {
        for (bring, announce_ahead) in [(active, false), (asked, false), (asked, true), (away, false)] {
            let capacity_bytes = 64 << 10;
            let device =
                Device::new(Options { movement, announce_ahead, capacity_bytes, ..Options::default() });
            let peer = Device::moving(movement);
            let region = device.region(&pattern(BYTES, 1));
            let (import, there) = (peer.import_from(&device, region), peer.region(&[0; BYTES]));
            let queued = device.copy(device.own(region, 0), device.own(region, 5000), 100);
            bring(&device, region);
            let generation = device.generation(region);
            device.notices();
            device.accelerator.free(region).unwrap();
            assert_eq!(device.notices(), [Notice::Freed { region, generation }]);
            assert_eq!(device.accelerator.free(region), Err(AcceleratorError::UnknownRegion(region)));
            assert_eq!(device.accelerator.status(region), Err(AcceleratorError::UnknownRegion(region)));
            assert!(device.outcome(&queued).is_err());
            let stale = peer.copy(imported(import, 0), peer.own(there, 0), 4);
            assert!(matches!(peer.outcome(&stale), Err(AcceleratorError::Stale { .. })));
            device.advance(10 * TICK);
            assert_eq!((device.notices(), device.accelerator.audit()), (vec![], vec![]));
            // All of its memory is free again.
            device.region(&[0; 56 << 10]);
        }
    }
}

#[test]
fn a_device_that_goes_away_takes_its_memory_with_it() {
    let (device, peer) = (Device::moving(Movement::Cooperative), Device::moving(Movement::Cooperative));
    let region = device.region(&pattern(BYTES, 1));
    let (import, there) = (peer.import_from(&device, region), peer.region(&[0; BYTES]));
    let own = device.copy(device.own(region, 0), device.own(region, 5000), 100);
    drop(device);
    assert_eq!(own.outcome(), Some(&Err(AcceleratorError::Gone)));
    let stale = peer.copy(imported(import, 0), peer.own(there, 0), 4);
    assert_eq!(peer.outcome(&stale), Err(AcceleratorError::Stale { region, generation: 0 }));
}

#[test]
fn random_moves_come_by_the_clock_and_the_seed() {
    let run = |seed| {
        let rates = Options {
            moves_per_second: 50.0,
            revokes_per_second: 20.0,
            lost_share: 0.5,
            ..Options::default()
        };
        let device = Device::new(Options { seed, device: 7, movement: Movement::Revocable, ..rates });
        for i in 0..4 {
            device.region(&pattern(BYTES, i));
        }
        let mut history = Vec::new();
        for _ in 0..2000 {
            device.advance(TICK);
            history.extend(device.notices());
        }
        (history, device.accelerator.counters())
    };
    let (history, counters) = run(3);
    assert!((100..180).contains(&counters.revokes), "about 140 in 2 s: {}", counters.revokes);
    assert_eq!((&history, counters), (&run(3).0, run(3).1), "the same seed is the same run");
    assert_ne!(history, run(4).0);
}

#[test]
fn lost_notices_are_found_in_the_status() {
    let device = Device::moving(Movement::Cooperative);
    let one = Arc::new(Notices::new(1, || {}));
    device.accelerator.listen(Arc::clone(&one));
    let (a, b) = (device.region(&[1; 10]), device.region(&[2; 10]));
    device.accelerator.move_now(a).unwrap();
    device.accelerator.move_now(b).unwrap();
    assert!(one.overflowed());
    let status = device.accelerator.status(b).unwrap();
    let windlass_memory::accelerator::Condition::MoveAsked { ticket, .. } = status.condition else {
        panic!("{status:?}")
    };
    device.accelerator.acknowledge(ticket).unwrap();
    device.advance(TICK);
    assert_eq!(device.generation(b), 1);
}

/// A region of many pieces: others are worked on between two of them, and it arrives after the last.
#[test]
fn a_copy_goes_on_beside_the_engine_and_its_end_is_the_notice() {
    if not_simulated() {
        return;
    }
    const LARGE: usize = 2 << 20;
    for announce_ahead in [false, true] {
        let device = Device::new(Options { announce_ahead, ..Options::default() });
        let (region, other) = (device.region(&pattern(LARGE, 1)), device.region(&pattern(BYTES, 2)));
        device.accelerator.move_now(region).unwrap();
        assert_eq!(device.notices(), [], "what is large is made ready first");
        let copy = |at| device.copy(device.own(other, 0), device.own(other, at), 100);
        let ready = copy(5000);
        device.step();
        assert_eq!((ready.outcome(), device.notices()), (Some(&Ok(())), vec![]));
        device.advance(TICK);
        device.accelerator.acknowledge(device.asked(region)).unwrap();
        let (mut steps, mut ended) = (0, 0);
        let mut copying = copy(6000);
        let moved = loop {
            device.now.set(device.now.get() + TICK);
            device.step();
            steps += 1;
            if copying.is_done() {
                ended += 1;
                copying = copy(6000 + ended * 100);
            }
            let notices = device.notices();
            if let Some(&notice) = notices.first() {
                break notice;
            }
            assert!(steps < 100, "it does not arrive");
        };
        assert_eq!(moved, Notice::Moved { region, generation: 1, copied: device.now.get() });
        assert!(steps >= 8 && ended >= 7, "{steps} pieces, {ended} copies beside them");
        assert_eq!(device.bytes(region), pattern(LARGE, 1));
        device.advance(TICK);
        assert_eq!(device.accelerator.audit(), []);
    }
}

/// Whatever becomes of a region in the middle of its copy, its bytes or its end are right.
#[test]
fn a_copy_is_cut_short_by_a_free_and_survives_an_audit() {
    if not_simulated() {
        return;
    }
    const LARGE: usize = 1 << 20;
    for frees in [false, true] {
        let device = Device::moving(Movement::Cooperative);
        let peer = Device::new(Options { guarded: false, ..Options::default() });
        let region = device.region(&pattern(LARGE, 1));
        let (import, there) = (peer.import_from(&device, region), peer.region(&pattern(BYTES, 2)));
        device.accelerator.move_now(region).unwrap();
        device.advance(TICK);
        device.accelerator.acknowledge(device.asked(region)).unwrap();
        device.step();
        device.step();
        assert_eq!(device.accelerator.audit(), []);
        if frees {
            device.accelerator.free(region).unwrap();
        }
        device.advance(TICK);
        if !frees {
            assert_eq!(device.bytes(region), pattern(LARGE, 1));
        }
        let store = peer.copy(peer.own(there, 0), imported(import, 900_000), 10);
        assert_eq!(peer.outcome(&store), Ok(()), "the liar never knows");
        let breach = Breach::StaleStore { region, generation: 0, offset: 900_000 };
        assert_eq!(device.accelerator.audit(), [breach]);
    }
}
