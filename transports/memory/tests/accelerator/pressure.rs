//! Devices that are full, or full of holes.

use super::*;

const PAGE: u64 = 4096;
/// Room for eight regions of two pages each, header and odd beginning not counted.
const CAPACITY: u64 = 32 * PAGE;
const SIZE: usize = 2 * PAGE as usize;

fn full(movement: Movement) -> (Device, Vec<Region>) {
    let device = Device::new(Options { movement, capacity_bytes: CAPACITY, ..Options::default() });
    let regions = (0..8).map(|i| device.region(&pattern(SIZE, i))).collect();
    (device, regions)
}

#[track_caller]
fn keep_their_bytes(device: &Device, regions: &[Region]) {
    for (i, &region) in regions.iter().enumerate() {
        if device.accelerator.status(region).is_ok() {
            assert!(device.bytes(region) == pattern(SIZE, i as u8), "region {i} has lost its bytes");
        }
    }
}

#[test]
fn more_than_there_is_is_a_typed_error() {
    if not_simulated() {
        return;
    }
    let device = Device::new(Options { capacity_bytes: CAPACITY, ..Options::default() });
    for bytes in [CAPACITY, 1 << 40, u64::MAX] {
        let error = device.accelerator.allocate(bytes).unwrap_err();
        let AcceleratorError::OutOfMemory { free_bytes: CAPACITY, reclaiming: false, .. } = error else {
            panic!("{error}")
        };
    }
    let all = device.accelerator.allocate(CAPACITY - 2 * PAGE).unwrap();
    device.accelerator.free(all).unwrap();
}

/// Two holes that only together are large enough.
fn holes(movement: Movement) -> (Device, Vec<Region>) {
    let (device, regions) = full(movement);
    [1, 4].into_iter().for_each(|i| device.accelerator.free(regions[i]).unwrap());
    device.notices();
    (device, regions)
}

#[test]
fn holes_are_moved_together_where_nobody_is_asked() {
    if not_simulated() {
        return;
    }
    for movement in [Movement::Revocable, Movement::Transparent] {
        let (device, regions) = holes(movement);
        let large = device.region(&pattern(3 * SIZE, 9));
        device.advance(2 * TICK);
        let counters = device.accelerator.counters();
        assert_eq!((counters.compactions, counters.evictions), (1, 0), "{movement:?}");
        keep_their_bytes(&device, &regions);
        assert_eq!(device.bytes(large), pattern(3 * SIZE, 9));
    }
}

#[test]
fn holes_are_moved_together_once_those_asked_have_agreed() {
    if not_simulated() {
        return;
    }
    for movement in [Movement::Cooperative, Movement::Pinned] {
        let (device, regions) = holes(movement);
        let reclaiming = |error| matches!(error, AcceleratorError::OutOfMemory { reclaiming: true, .. });
        assert!(reclaiming(device.accelerator.allocate(3 * SIZE as u64).unwrap_err()));
        assert!(reclaiming(device.accelerator.allocate(3 * SIZE as u64).unwrap_err()), "patience");
        for notice in device.notices() {
            let Notice::MoveAsked { ticket, .. } = notice else { panic!("{notice:?}") };
            device.accelerator.acknowledge(ticket).unwrap();
        }
        device.advance(TICK);
        device.region(&pattern(3 * SIZE, 9));
        device.advance(TICK);
        keep_their_bytes(&device, &regions);
        assert_eq!(device.accelerator.counters().compactions, 1, "{movement:?}");
    }
}

#[test]
fn a_refused_compaction_leaves_everything_where_it_is() {
    if not_simulated() {
        return;
    }
    let (device, regions) = holes(Movement::Cooperative);
    device.accelerator.allocate(3 * SIZE as u64).unwrap_err();
    device.advance(Duration::from_secs(1));
    assert!(device.notices().iter().any(|notice| matches!(notice, Notice::Abandoned { .. })));
    keep_their_bytes(&device, &regions);
    device.advance(Duration::from_secs(9));
    device.region(&pattern(SIZE, 7));
}

#[test]
fn what_is_evicted_comes_back_when_there_is_room() {
    if not_simulated() {
        return;
    }
    for movement in [Movement::Revocable, Movement::Cooperative] {
        let (device, regions) = full(movement);
        let size = 3 * SIZE as u64;
        let large = device.accelerator.allocate(size).or_else(|_| {
            for notice in device.notices() {
                let Notice::MoveAsked { ticket, .. } = notice else { panic!("{notice:?}") };
                device.accelerator.acknowledge(ticket).unwrap();
            }
            device.accelerator.allocate(size)
        });
        let large = large.unwrap();
        assert_eq!(device.accelerator.counters().evictions, 2, "{movement:?}");
        device.advance(100 * TICK);
        let out = |region: &&Region| device.accelerator.read(device.own(**region, 0), &mut [0]).is_err();
        assert_eq!(regions.iter().filter(out).count(), 2, "there is no room for them");
        device.accelerator.free(large).unwrap();
        device.advance(100 * TICK);
        keep_their_bytes(&device, &regions);
        assert_eq!(device.accelerator.audit(), []);
    }
}

#[test]
fn nothing_is_evicted_where_nobody_would_know() {
    if not_simulated() {
        return;
    }
    let (device, regions) = full(Movement::Transparent);
    let error = device.accelerator.allocate(SIZE as u64).unwrap_err();
    assert!(
        matches!(error, AcceleratorError::OutOfMemory { free_bytes: 0, reclaiming: false, .. }),
        "{error}"
    );
    keep_their_bytes(&device, &regions);
}
