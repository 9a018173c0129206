//! Canaries: whoever breaks a rule is found, and told apart.

use windlass_memory::accelerator::simulated::Breach;

use super::*;

const BYTES: usize = 10_000;

fn liar() -> Device {
    Device::new(Options { guarded: false, ..Options::default() })
}

#[test]
fn a_store_after_the_acknowledgement_is_found_with_its_place() {
    if not_simulated() {
        return;
    }
    let (device, peer) = (Device::moving(Movement::Cooperative), liar());
    let region = device.region(&pattern(BYTES, 1));
    let (import, there) = (peer.import_from(&device, region), peer.region(&pattern(BYTES, 2)));
    device.accelerator.move_now(region).unwrap();
    device.accelerator.acknowledge(device.asked(region)).unwrap();
    device.advance(TICK);
    assert_eq!(device.accelerator.audit(), []);
    for _ in 0..2 {
        let store = peer.copy(peer.own(there, 0), imported(import, 4321), 10);
        assert_eq!(peer.outcome(&store), Ok(()), "the liar never knows");
        let breach = Breach::StaleStore { region, generation: 0, offset: 4321 };
        assert_eq!(device.accelerator.audit(), [breach]);
        assert_eq!(device.accelerator.audit(), [], "reported once");
    }
    assert_eq!((device.accelerator.counters().breaches, device.bytes(region)), (2, pattern(BYTES, 1)));
}

#[test]
fn a_store_through_an_old_import_after_a_revoke_is_found() {
    if not_simulated() {
        return;
    }
    let (device, peer) = (Device::moving(Movement::Revocable), liar());
    let region = device.region(&pattern(BYTES, 1));
    let (import, there) = (peer.import_from(&device, region), peer.region(&pattern(BYTES, 2)));
    device.accelerator.revoke_now(region, Contents::Preserved).unwrap();
    device.advance(TICK);
    let store = peer.copy(peer.own(there, 0), imported(import, 0), 1);
    assert_eq!(peer.outcome(&store), Ok(()));
    assert_eq!(device.accelerator.audit(), [Breach::StaleStore { region, generation: 0, offset: 0 }]);
    // Also at the last look, when what was kept is given up.
    peer.outcome(&peer.copy(peer.own(there, 0), imported(import, 8), 1)).unwrap();
    device.advance(Duration::from_secs(11));
    assert_eq!(device.accelerator.counters().breaches, 2);
}

#[test]
fn a_stale_load_gives_a_nan_of_every_float_type() {
    if not_simulated() {
        return;
    }
    let (device, peer) = (Device::moving(Movement::Cooperative), liar());
    let region = device.region(&pattern(BYTES, 1));
    let (import, there) = (peer.import_from(&device, region), peer.region(&[0; 64]));
    device.accelerator.move_now(region).unwrap();
    device.accelerator.acknowledge(device.asked(region)).unwrap();
    device.advance(TICK);
    peer.outcome(&peer.copy(imported(import, 0), peer.own(there, 0), 64)).unwrap();
    let bytes = peer.bytes(there);
    assert!(f64::from_le_bytes(bytes[..8].try_into().unwrap()).is_nan());
    assert!(f32::from_le_bytes(bytes[..4].try_into().unwrap()).is_nan());
    let half = u16::from_le_bytes(bytes[..2].try_into().unwrap());
    assert!(
        windlass_kernels::f16::from_bits(half).is_nan() && windlass_kernels::bf16::from_bits(half).is_nan()
    );
}

#[test]
fn early_access_is_found_at_an_audit_and_at_the_move() {
    if not_simulated() {
        return;
    }
    let owner = || Device::new(Options { announce_ahead: true, ..Options::default() });
    for audits in [false, true] {
        let (device, peer) = (owner(), liar());
        let region = device.region(&pattern(BYTES, 1));
        let there = peer.region(&pattern(BYTES, 2));
        device.accelerator.move_now(region).unwrap();
        let ahead = peer.import(&device.export(region, 1).unwrap()).unwrap();
        peer.outcome(&peer.copy(peer.own(there, 0), imported(ahead, 77), 4)).unwrap();
        let breach = [Breach::EarlyStore { region, generation: 1, offset: 77 }];
        if audits {
            assert_eq!(device.accelerator.audit(), breach);
        }
        device.accelerator.acknowledge(device.asked(region)).unwrap();
        device.advance(TICK);
        assert_eq!(device.accelerator.audit(), breach[usize::from(audits)..]);
        assert_eq!(device.bytes(region), pattern(BYTES, 1));
    }
}

#[test]
fn an_owner_that_acknowledges_and_goes_on_is_found() {
    if not_simulated() {
        return;
    }
    let device = liar();
    let region = device.region(&pattern(BYTES, 1));
    let old = device.own(region, 5);
    device.accelerator.move_now(region).unwrap();
    device.accelerator.acknowledge(device.asked(region)).unwrap();
    device.advance(TICK);
    device.accelerator.write(old, &[0; 3]).unwrap();
    assert_eq!(device.accelerator.audit(), [Breach::StaleStore { region, generation: 0, offset: 5 }]);
}

#[test]
fn an_acknowledgement_while_work_runs_is_found_and_the_work_knows() {
    if not_simulated() {
        return;
    }
    let (device, peer) = (
        Device::moving(Movement::Cooperative),
        Device::new(Options { chunk_bytes: 1000, ..Options::default() }),
    );
    let region = device.region(&pattern(BYTES, 1));
    let (import, there) = (peer.import_from(&device, region), peer.region(&pattern(BYTES, 2)));
    let copy = peer.copy(peer.own(there, 0), imported(import, 0), BYTES as u64);
    peer.step();
    device.accelerator.move_now(region).unwrap();
    device.accelerator.acknowledge(device.asked(region)).unwrap();
    assert_eq!(device.accelerator.audit(), [Breach::AtWork { region, generation: 0 }]);
    assert_eq!(peer.outcome(&copy), Err(AcceleratorError::Stale { region, generation: 0 }));
    device.advance(TICK);
    assert_eq!(device.accelerator.audit(), [], "the old pages were poisoned only once the work had left");
}

#[test]
fn a_store_in_the_middle_of_a_transparent_move_is_found() {
    if not_simulated() {
        return;
    }
    let device =
        Device::new(Options { movement: Movement::Transparent, move_time: 5 * TICK, ..Options::default() });
    let peer = liar();
    let region = device.region(&pattern(BYTES, 1));
    let (import, there) = (peer.import_from(&device, region), peer.region(&pattern(BYTES, 2)));
    device.accelerator.move_now(region).unwrap();
    peer.outcome(&peer.copy(peer.own(there, 0), imported(import, 9), 1)).unwrap();
    device.advance(5 * TICK);
    assert_eq!(device.accelerator.audit(), [Breach::StaleStore { region, generation: 0, offset: 9 }]);
    assert_eq!(device.bytes(region), pattern(BYTES, 1));
}

#[test]
fn a_store_beyond_the_region_is_found_in_the_slack() {
    if not_simulated() {
        return;
    }
    let (device, peer) = (Device::moving(Movement::Revocable), liar());
    let region = device.region(&pattern(100, 1));
    let export = device.export(region, 0).unwrap();
    device.accelerator.revoke_now(region, Contents::Lost).unwrap();
    device.advance(TICK);
    // What a NIC could do that registered whole pages.
    rustix::io::pwrite(&export.descriptor, &[0; 4], export.exported.offset - 4).unwrap();
    assert_eq!(device.accelerator.audit(), [Breach::StaleStore { region, generation: 0, offset: -4 }]);
    drop(peer);
}
