//! What goes wrong, and that it can be put right.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use windlass_rdma::verbs::{
    Access, Address, Event, MemoryRegion, Mtu, Place, RegisterError, State, Status, Timing,
};

use crate::rig::{Pages, Pair, device, move_over, place, sge, write};

const BYTES: usize = 16 << 10;

/// The ends with registered memory, written to and looked at.
struct Link {
    pair: Pair,
    from: MemoryRegion,
    to: MemoryRegion,
    source: Pages,
    target: Pages,
}

impl Link {
    fn new() -> Option<Self> {
        let pair = Pair::connected()?;
        let (source, target) = (Pages::new(BYTES), Pages::new(BYTES));
        let from = source.register(&pair.a.device, Access::LOCAL_READ);
        let to = target.register(&pair.b.device, Access::REMOTE_WRITE);
        Some(Self { pair, from, to, source, target })
    }

    /// Data go over, and arrive.
    #[track_caller]
    fn works(&mut self, value: u8) {
        self.source.fill(value);
        move_over(&mut self.pair, &sge(&self.from), place(&self.to)).expect("the write succeeds");
        assert!(self.target.holds(0, BYTES, value));
    }
}

#[test]
fn a_wrong_key_is_refused_and_both_ends_recover() {
    let Some(mut link) = Link::new() else { return };
    link.works(1);
    for round in 0..20 {
        let wrong = Place { key: link.to.remote_key() ^ 0x5500, ..place(&link.to) };
        link.source.fill(0xee);
        let failure = move_over(&mut link.pair, &sge(&link.from), wrong).unwrap_err();
        assert_eq!(failure.status, Status::RemoteAccess);
        if round == 0 {
            // What comes after is thrown away, at either end.
            let failure = move_over(&mut link.pair, &sge(&link.from), place(&link.to)).unwrap_err();
            assert_eq!(failure.status, Status::Flushed);
            assert_eq!(link.pair.a.queue_pair.state(), Ok(State::Error));
            assert_eq!(link.pair.b.queue_pair.state(), Ok(State::Error));
            let number = link.pair.b.queue_pair.number();
            assert_eq!(
                link.pair.b.device.next_event().unwrap(),
                Some(Event::AccessError { queue_pair: number })
            );
        }
        assert!(link.target.holds(0, BYTES, if round == 0 { 1 } else { round + 1 }), "nothing was written");
        // At once, while the device may still be taking it to the error state.
        link.pair.recycle();
        link.works(round + 2);
    }
}

#[test]
fn a_place_beyond_the_region_and_one_that_was_deregistered() {
    let Some(mut link) = Link::new() else { return };
    let beyond = Place { address: link.to.address() + 1, ..place(&link.to) };
    assert_eq!(move_over(&mut link.pair, &sge(&link.from), beyond).unwrap_err().status, Status::RemoteAccess);
    link.pair.recycle();
    link.works(3);
    let was = place(&link.to);
    let anew = link.target.register(&link.pair.b.device, Access::REMOTE_WRITE);
    std::mem::replace(&mut link.to, anew).deregister().unwrap();
    assert_eq!(move_over(&mut link.pair, &sge(&link.from), was).unwrap_err().status, Status::RemoteAccess);
    link.pair.recycle();
    link.works(4);
}

#[test]
fn a_peer_that_does_not_answer_is_found_in_time() {
    let Some(pair) = Pair::unconnected() else { return };
    let (source, target) = (Pages::new(BYTES), Pages::new(BYTES));
    let from = source.register(&pair.a.device, Access::LOCAL_READ);
    let to = target.register(&pair.b.device, Access::REMOTE_WRITE);
    let mut link = Link { pair, from, to, source, target };
    // The other end is not connected.
    link.pair.a.queue_pair.connect(&link.pair.b.queue_pair.address(), Timing::new(14, 3, 0)).unwrap();
    let begin = Instant::now();
    let failure = move_over(&mut link.pair, &sge(&link.from), place(&link.to)).unwrap_err();
    assert_eq!(failure.status, Status::RetryExceeded);
    // 4 times 67 ms by the book, NICs may take four times as long, and a virtual machine what it likes. For ever would be longer than the rig's patience.
    println!("a peer that does not answer is found after {:?}", begin.elapsed());
    link.pair.recycle();
    link.works(5);
}

#[test]
fn a_peer_without_receives_is_found_in_time() {
    let Some(mut link) = Link::new() else { return };
    link.pair.a.queue_pair.reset().unwrap();
    link.pair.b.queue_pair.reset().unwrap();
    link.pair.connect(Timing::new(14, 3, 1));
    let source_of = sge(&link.from);
    // SAFETY: the regions outlive the work.
    unsafe { link.pair.a.queue_pair.post_write(&write(&source_of, place(&link.to), Some(1))) }.unwrap();
    assert_eq!(link.pair.a.fails().status, Status::ReceiverNotReady);
    link.pair.recycle();
    link.works(6);
}

#[test]
fn work_for_a_queue_pair_that_is_not_connected_is_refused_or_waits() {
    let Some(pair) = Pair::unconnected() else { return };
    // Receives need INIT, sends RTS.
    let error = pair.a.queue_pair.post_receive(1).err();
    assert!(error.is_none_or(|e| e.posted == 0 && e.cause.errno == libc::EINVAL));
    let error =
        pair.a.queue_pair.post_inline(1, &[0; 8], Place { address: 0, key: 0 }, None, true).unwrap_err();
    assert_eq!((error.posted, error.cause.errno), (0, libc::EINVAL), "{error}");
}

#[test]
fn memory_that_is_not_there_is_not_registered() {
    let Some((device, _)) = device() else { return };
    let pages = Pages::new(BYTES);
    let at = pages.at();
    drop(pages);
    // SAFETY: nothing is mapped there, which the kernel finds out.
    let error = unsafe { MemoryRegion::register(&device, at, BYTES, Access::LOCAL_WRITE) }.unwrap_err();
    assert!(matches!(error, RegisterError::Unmapped { bytes: BYTES, .. }), "{error}");
}

/// Only root may lock more than the limit, so the thread that tries is not.
#[test]
fn memory_beyond_the_limit_is_refused_with_the_limit() {
    let Some((device, _)) = device() else { return };
    let before = getrlimit(Resource::Memlock);
    let pages = Pages::new(1 << 20);
    setrlimit(Resource::Memlock, Rlimit { current: Some(64 << 10), maximum: before.maximum }).unwrap();
    let (at, bytes) = (pages.at().expose_provenance(), pages.bytes);
    let refused = std::thread::scope(|scope| {
        let without_privilege = scope.spawn(|| {
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::IPC_LOCK);
            set_capabilities(None, sets).unwrap();
            let at = std::ptr::with_exposed_provenance_mut(at);
            // SAFETY: the pages outlive the region, if there is one.
            unsafe { MemoryRegion::register(&device, at, bytes, Access::LOCAL_WRITE) }.err()
        });
        without_privilege.join().unwrap()
    });
    setrlimit(Resource::Memlock, before).unwrap();
    let error = refused.expect("more than the limit is refused");
    assert!(
        matches!(error, RegisterError::LockedMemory { bytes: 0x10_0000, limit: Some(0x1_0000), .. }),
        "{error}"
    );
    assert!(error.to_string().contains("ulimit -l"), "{error}");
    drop(pages.register(&device, Access::LOCAL_WRITE));
}

#[test]
fn ends_that_differ_on_the_size_of_packets_fail_and_recover() {
    let Some(mut link) = Link::new() else { return };
    for end in [&mut link.pair.a, &mut link.pair.b] {
        end.queue_pair.reset().unwrap();
    }
    let [a, b] = [&link.pair.a, &link.pair.b].map(|end| end.queue_pair.address());
    let small = Address { mtu: Mtu::from_bytes(256).unwrap(), ..b };
    link.pair.a.queue_pair.connect(&small, Timing::new(14, 3, 0)).unwrap();
    link.pair.b.queue_pair.connect(&a, Timing::new(14, 3, 0)).unwrap();
    let failure = move_over(&mut link.pair, &sge(&link.from), place(&link.to)).unwrap_err();
    assert_eq!(failure.status, Status::RemoteInvalidRequest, "{failure}");
    link.pair.recycle();
    link.works(7);
}

#[test]
fn an_address_that_is_nobodys_is_found_in_time() {
    let Some(mut link) = Link::new() else { return };
    let mut nobody = link.pair.b.queue_pair.address();
    nobody.gid.0[12..].copy_from_slice(&[10, 77, 0, 250]);
    link.pair.a.queue_pair.reset().unwrap();
    let begin = Instant::now();
    // Some NICs ask for the way when they are connected, others when they send.
    if let Err(error) = link.pair.a.queue_pair.connect(&nobody, Timing::new(14, 3, 0)) {
        assert!(error.to_string().contains("does not answer"), "{error}");
    } else {
        let failure = move_over(&mut link.pair, &sge(&link.from), place(&link.to)).unwrap_err();
        assert_eq!(failure.status, Status::RetryExceeded);
    }
    println!("an address that is nobody's is found after {:?}", begin.elapsed());
    link.pair.recycle();
    link.works(8);
}

#[test]
fn a_port_that_goes_down_is_told() {
    let Some((device, attachment)) = device() else { return };
    if std::env::var_os("WINDLASS_TESTBED_HOST").is_none() {
        println!("skipped: a port that goes down, because this is not the testbed");
        return;
    }
    let link = |state: &str| {
        let status = std::process::Command::new("ip").args(["link", "set", "eth0", state]).status();
        assert!(status.expect("ip runs").success());
    };
    let told = |wanted: Event| {
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            while let Some(event) = device.next_event().unwrap() {
                if event == wanted {
                    return true;
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    };
    link("down");
    let down = told(Event::PortError { port: attachment.port });
    let active = device.port(attachment.port).unwrap().state == windlass_rdma::verbs::PortState::Active;
    link("up");
    assert!(down && !active, "told: {down}, active: {active}");
    assert!(told(Event::PortActive { port: attachment.port }));
}
