//! What is found out of a NIC and an accelerator is what the machine was started as.

use windlass_memory::accelerator::Movement;
use windlass_memory::accelerator::kernel::Driver;
use windlass_memory::accelerator::kernel::testbed;
use windlass_rdma::selftest::{After, Mode, run};
use windlass_rdma::verbs::Status;

use crate::dmabuf::importer;
use crate::rig::device;

const STAYS: After = After::Stays { errno: libc::EBUSY };
const DIES: After = After::Dies { status: Status::RemoteAccess };

#[test]
fn selftest_finds_how_the_nic_takes_moves_and_harms_nobody() {
    let Some((device, attachment)) = device() else { return };
    let Ok(driver) = Driver::open("testbed") else { return println!("skipped: no memory that moves") };
    let counted = || testbed::Device::open().unwrap().stat(None).unwrap();
    let before = counted();
    let (mode, moves) = match importer().as_str() {
        "dynamic" => (Mode::Transparent, [After::Follows, After::Follows, DIES]),
        "revocable" => (Mode::Revocable, [STAYS, DIES, DIES]),
        _ => (Mode::Pinned, [STAYS, After::Strays, After::Strays]),
    };
    for _ in 0..3 {
        let begin = std::time::Instant::now();
        let found = run(&device, attachment, &driver).unwrap().expect("its memory moves");
        println!("{found:?} after {:?}", begin.elapsed());
        assert_eq!((found.mode(), [found.shifted, found.forced, found.revoked]), (mode, moves));
        assert_eq!(found.permit(Movement::Revocable), mode != Mode::Pinned);
    }
    // Not a byte was written to where memory had been, nor is anything held; other hosts' tests, which are counted, too, end.
    let begin = std::time::Instant::now();
    while (counted().pins, counted().maps) > (before.pins, before.maps) {
        assert!(begin.elapsed().as_secs() < 60, "{:?}, {before:?} before", counted());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(counted().stale_bytes, before.stale_bytes);
}

#[test]
fn selftest_of_memory_that_stays_proves_registration_and_data() {
    let Some((device, attachment)) = device() else { return };
    for name in ["udmabuf", "dma-heap", "habanalabs"] {
        let driver = Driver::open(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(run(&device, attachment, &driver).unwrap_or_else(|error| panic!("{name}: {error}")), None);
    }
}
