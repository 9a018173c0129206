//! What may be asked of an engine, and when its work ends.

use super::*;

const BYTES: usize = 4096;

#[test]
fn operands_begin_anywhere_in_their_exported_range() {
    let (device, peer) = (Device::moving(Movement::Cooperative), Device::moving(Movement::Cooperative));
    let region = device.region(&pattern(BYTES, 1));
    let there = peer.region(&[0; BYTES]);
    let range = DeviceRange { region, generation: 0, offset: 1001, bytes: 501 };
    let export = device.accelerator.export(range).unwrap();
    let import = peer.import(&export).unwrap();
    let copy = peer.copy(imported(import, 2), peer.own(there, 7), 499);
    assert_eq!(peer.outcome(&copy), Ok(()));
    assert_eq!(peer.bytes(there)[7..506], pattern(BYTES, 1)[1003..1502]);
    let beyond = peer.try_copy(imported(import, 3), peer.own(there, 7), 499).unwrap_err();
    assert_eq!(beyond, AcceleratorError::OutOfRange { region, offset: 3, bytes: 499, limit: 501 });
    let (offset, bytes) = export.exported.pages();
    assert!(offset > 0 && offset <= export.exported.offset && offset + bytes >= export.exported.offset + 501);
}

#[test]
fn exported_offsets_are_never_zero_and_ranges_end_where_their_region_does() {
    let device = Device::moving(Movement::Cooperative);
    for bytes in [0, 1, 4095, 4096, 4097, 1 << 20] {
        let region = device.accelerator.allocate(bytes).unwrap();
        assert!(device.export(region, 0).unwrap().exported.offset > 4096);
        for (offset, length) in [(0, bytes + 1), (bytes, 1), (u64::MAX, 2), (bytes + 1, 0)] {
            let range = DeviceRange { region, generation: 0, offset, bytes: length };
            let error = device.accelerator.export(range).unwrap_err();
            assert_eq!(error, AcceleratorError::OutOfRange { region, offset, bytes: length, limit: bytes });
        }
    }
    let nobodys = Region::new(1, 1);
    assert_eq!(device.export(nobodys, 0).unwrap_err(), AcceleratorError::UnknownRegion(nobodys));
}

#[test]
fn nothing_is_a_size_too() {
    let device = Device::moving(Movement::Cooperative);
    let (empty, region) = (device.region(&[]), device.region(&pattern(BYTES, 1)));
    let import = device.import_from(&device, empty);
    for from in [device.own(empty, 0), imported(import, 0), device.own(region, BYTES as u64)] {
        let copy = device.copy(from, device.own(region, 5), 0);
        assert_eq!(device.outcome(&copy), Ok(()));
    }
    device.accelerator.read(device.own(empty, 0), &mut []).unwrap();
    device.accelerator.move_now(empty).unwrap();
    device.accelerator.acknowledge(device.asked(empty)).unwrap();
    device.advance(TICK);
    assert_eq!((device.generation(empty), device.bytes(region)), (1, pattern(BYTES, 1)));
}

#[test]
fn operands_are_in_place_or_apart() {
    let device = Device::moving(Movement::Cooperative);
    let region = device.region(&[1; BYTES]);
    // The same memory by another way.
    let import = device.import_from(&device, region);
    let overlap = |from, to, bytes| device.try_copy(from, to, bytes).map(|fence| device.outcome(&fence));
    let own = |offset| device.own(region, offset);
    assert_eq!(overlap(own(0), own(99), 100), Err(AcceleratorError::Overlap { output: 0 }));
    assert_eq!(overlap(own(99), imported(import, 0), 100), Err(AcceleratorError::Overlap { output: 0 }));
    assert_eq!(overlap(own(0), own(100), 100), Ok(Ok(())));
    let twice = device.add(&[own(0), imported(import, 0)], own(0), 4);
    assert_eq!(
        (device.outcome(&twice), &device.bytes(region)[..17]),
        (Ok(()), &[[2; 16].as_slice(), &[1]].concat()[..])
    );
    let combine = Combine::copy(DataType::U8);
    let outputs = [own(100), own(199)];
    let work = Work { combine, divisor: 1, count: 100, inputs: &[own(0)], outputs: &outputs, after: None };
    assert_eq!(device.accelerator.submit(&work).unwrap_err(), AcceleratorError::Overlap { output: 1 });
}

#[test]
fn a_copy_has_one_input_and_a_reduction_some() {
    let device = Device::moving(Movement::Cooperative);
    let region = device.region(&[1; BYTES]);
    let (copy, sum) = (Combine::copy(DataType::U8), Combine::reduce(DataType::U8, ReduceOp::Sum));
    for (combine, count) in [(copy, 0), (copy, 2), (sum, 0)] {
        let inputs = vec![device.own(region, 0); count];
        let outputs = [device.own(region, 0)];
        let work = Work { combine, divisor: 1, count: 1, inputs: &inputs, outputs: &outputs, after: None };
        assert_eq!(device.accelerator.submit(&work).unwrap_err(), AcceleratorError::InputCount { count });
    }
    let huge = device.try_copy(device.own(region, 0), device.own(region, 0), u64::MAX);
    assert!(matches!(huge, Err(AcceleratorError::OutOfRange { .. })));
    let nobodys = device.try_copy(imported(Import::new(9), 0), device.own(region, 0), 1);
    assert_eq!(nobodys.unwrap_err(), AcceleratorError::UnknownImport(Import::new(9)));
}

#[test]
fn a_start_fence_holds_work_back_and_hands_on_its_error() {
    let device = Device::moving(Movement::Cooperative);
    let (from, to) = (device.region(&pattern(BYTES, 1)), device.region(&[0; BYTES]));
    let copy = |after: &Fence| {
        let (combine, count) = (Combine::copy(DataType::U8), BYTES as u64);
        let (inputs, outputs) = (&[device.own(from, 0)], &[device.own(to, 0)]);
        let work = Work { combine, divisor: 1, count, inputs, outputs, after: Some(after) };
        device.accelerator.submit(&work).unwrap()
    };
    let start = Fence::new();
    let held = copy(&start);
    let free = device.copy(device.own(from, 0), device.own(from, 0), 1);
    device.advance(TICK);
    assert!(free.is_done() && !held.is_done());
    assert_eq!(device.bytes(to), [0; BYTES]);
    start.signal(Ok(()));
    assert_eq!((device.outcome(&held), device.bytes(to)), (Ok(()), pattern(BYTES, 1)));
    let error = AcceleratorError::Stale { region: from, generation: 8 };
    let failed = Fence::done(Err(error.clone()));
    failed.signal(Ok(()));
    assert_eq!(device.outcome(&copy(&failed)), Err(error));
}

#[test]
fn fences_are_late_in_order_or_not_as_the_options_say() {
    for reorder in [false, true] {
        let fence_delay = TICK..=20 * TICK;
        let device = Device::new(Options { fence_delay, reorder, seed: 5, ..Options::default() });
        let region = device.region(&[1; BYTES]);
        let fences: Vec<Fence> =
            (0..32).map(|i| device.copy(device.own(region, i), device.own(region, 100 + i), 1)).collect();
        let mut order = Vec::new();
        for tick in 0..25 {
            let done = |order: &[usize]| -> Vec<usize> {
                (0..32).filter(|i| fences[*i].is_done() && !order.contains(i)).collect()
            };
            let ended = done(&order);
            assert!(tick > 0 || ended.is_empty());
            order.extend(ended);
            device.advance(TICK);
        }
        order.extend((0..32).filter(|i| !order.contains(i)).collect::<Vec<_>>());
        assert!(fences.iter().all(|fence| fence.outcome() == Some(&Ok(()))));
        assert_eq!(order.is_sorted(), !reorder, "{order:?}");
    }
}

#[test]
fn notices_wake_and_so_do_fences() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let device = Device::moving(Movement::Cooperative);
    let woken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&woken);
    let hook = move || {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    device.accelerator.listen(Arc::new(Notices::new(4, hook)));
    let region = device.region(&[1; BYTES]);
    assert_eq!(woken.load(Ordering::Relaxed), 0);
    let copy = device.copy(device.own(region, 0), device.own(region, 0), 1);
    device.outcome(&copy).unwrap();
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    device.accelerator.move_now(region).unwrap();
    assert_eq!(woken.load(Ordering::Relaxed), 2);
}
