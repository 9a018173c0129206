//! A device with a thread of its own, as programs have it.

use std::time::Instant;

use super::*;

fn until(mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing happens");
        std::thread::yield_now();
    }
}

#[test]
fn work_moves_and_start_fences_go_on_by_themselves() {
    let patience = Duration::from_secs(60);
    let accelerator = Subject::new(Options { announce_ahead: true, patience, ..Options::default() });
    let notices = Arc::new(Notices::new(64, || {}));
    accelerator.listen(Arc::clone(&notices));
    let region = accelerator.allocate(1 << 20).unwrap();
    let own = |generation, offset| Operand { place: Place::Own(region, generation), offset };
    accelerator.write(own(0, 0), &pattern(1 << 19, 3)).unwrap();
    let start = Fence::new();
    let combine = Combine::copy(DataType::U8);
    let (inputs, outputs) = ([own(0, 0)], [own(0, 1 << 19)]);
    let (inputs, outputs) = (&inputs, &outputs);
    let work = Work { combine, divisor: 1, count: 1 << 19, inputs, outputs, after: Some(&start) };
    let copy = accelerator.submit(&work).unwrap();
    std::thread::sleep(2 * TICK);
    assert!(!copy.is_done());
    start.signal(Ok(()));
    until(|| copy.is_done());
    accelerator.move_now(region).unwrap();
    until(|| match notices.pop() {
        Some(Notice::MoveAsked { ticket, deadline, .. }) => {
            assert!(deadline > accelerator.now());
            accelerator.acknowledge(ticket).unwrap();
            false
        }
        Some(Notice::Moved { generation, .. }) => generation == 1,
        _ => false,
    });
    let mut bytes = vec![0; 1 << 19];
    accelerator.read(own(1, 1 << 19), &mut bytes).unwrap();
    assert!(bytes == pattern(1 << 19, 3));
    assert_eq!(accelerator.audit(), []);
}

/// Two engines on two threads, revokes at random: whatever ends well is there.
#[test]
fn work_that_ended_well_survives_every_revoke() {
    let revocable = |seed| Options { movement: Movement::Revocable, seed, ..Options::default() };
    let rates =
        Options { revokes_per_second: 400.0, replacement_time: Duration::from_micros(50), ..revocable(1) };
    let (owner, peer) = (Subject::new(rates), Subject::new(revocable(2)));
    const COUNT: u64 = 1 << 16;
    let region = owner.allocate(4 * COUNT).unwrap();
    let from = peer.allocate(4 * COUNT).unwrap();
    let (mut value, mut stale, mut well) = (0i32, 0, 0);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(1500) || stale == 0 || well == 0 {
        assert!(begin.elapsed() < Duration::from_secs(30), "{stale} stale, {well} well");
        value += 1;
        peer.write(
            Operand { place: Place::Own(from, 0), offset: 0 },
            &value.to_le_bytes().repeat(COUNT as usize),
        )
        .unwrap();
        let done = loop {
            let generation = owner.status(region).unwrap().generation;
            let Ok(export) = owner.export(DeviceRange { region, generation, offset: 0, bytes: 4 * COUNT })
            else {
                std::thread::yield_now();
                continue;
            };
            use std::os::fd::AsFd;
            let Ok(import) = peer.import(export.descriptor.as_fd(), &export.exported) else { continue };
            let combine = Combine::copy(DataType::I32);
            let inputs = &[Operand { place: Place::Own(from, 0), offset: 0 }];
            let outputs = &[imported(import, 0)];
            let work = Work { combine, divisor: 1, count: COUNT, inputs, outputs, after: None };
            let fence = peer.submit(&work).unwrap();
            until(|| fence.is_done());
            peer.release(import).unwrap();
            if fence.outcome() == Some(&Ok(())) {
                break value;
            }
            stale += 1;
        };
        well += 1;
        let mut bytes = vec![0; 4 * COUNT as usize];
        until(|| {
            let generation = owner.status(region).unwrap().generation;
            owner.read(Operand { place: Place::Own(region, generation), offset: 0 }, &mut bytes).is_ok()
        });
        assert!(bytes == done.to_le_bytes().repeat(COUNT as usize), "a store that ended well is lost");
    }
    assert_eq!((owner.audit(), peer.audit()), (vec![], vec![]));
}
