//! Connections by two NICs, one of which goes down, comes back or is removed: in the testbed (`make test-rdma`), whose NICs may be treated so.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass_rdma::transport::{Options, Rdma};
use windlass_transports::reach::{Register, Registrable, SegmentKey, Source};
use windlass_transports::{Event, LostCause, Message, MessageId, Token, Transport};

const PAGE: usize = 4096;
const BYTES: usize = 3_000_000;

/// Whether there are two NICs that may be treated in any way.
fn testbed() -> bool {
    let two = std::path::Path::new("/sys/class/infiniband/rxe0_1").exists();
    let ours = std::env::var_os("WINDLASS_TESTBED_HOST").is_some();
    if !(two && ours) {
        println!("skipped: this needs the testbed, with two NICs");
    }
    two && ours
}

/// Does something to a NIC; how long that took.
fn shell(command: &str) -> Duration {
    let begin = Instant::now();
    let status = Command::new("sh").args(["-c", command]).status().expect("a shell");
    assert!(status.success(), "{command}: {status}");
    let took = begin.elapsed();
    println!("{command}: {took:?}");
    took
}

/// Bytes that a NIC has sent.
fn sent_by(device: &str) -> u64 {
    let output = Command::new("rdma").args(["statistic", "show", "link", &format!("{device}/1")]).output();
    let text = String::from_utf8(output.expect("the program").stdout).expect("text");
    let mut words = text.split_whitespace().skip_while(|word| *word != "sent_bytes").skip(1);
    words.next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{device}: {text}"))
}

/// The memory of operations, which live as long as the transports do.
#[derive(Debug)]
struct Everything;

// SAFETY: the memory of all operations is kept until the transports are gone.
unsafe impl Register for Everything {
    fn find(&self, memory: *const u8, bytes: usize) -> Option<Registrable> {
        let offset = memory.addr() % PAGE;
        let base = memory.wrapping_sub(offset);
        let key = SegmentKey { segment: base.addr() as u64 ^ (bytes as u64) << 48, generation: 0 };
        let bytes = (offset + bytes).next_multiple_of(PAGE);
        Some(Registrable { key, offset, source: Source::Host { base, bytes } })
    }
}

/// Two connected ranks, and messages from the first to the second.
struct Two {
    /// Before the memory.
    ranks: Vec<Rdma>,
    from: Vec<u8>,
    into: Vec<u8>,
    sequence: u64,
    /// What has happened besides.
    told: Vec<(usize, Event)>,
}

fn two(options: &Options) -> Vec<Rdma> {
    // The control streams go by the NIC that stays.
    let options = Options { address: Some(Ipv4Addr::new(10, 77, 0, 1).into()), ..options.clone() };
    let bind =
        |rank| Rdma::bind(rank, 0xfeed, options.clone(), Some(Arc::new(Everything))).expect("two NICs");
    let bound: Vec<_> = (0..2).map(bind).collect();
    let addresses: Vec<_> = bound.iter().map(|(_, address)| *address).collect();
    let connected = bound.into_iter().map(|(mut rdma, _)| {
        rdma.connect(&addresses).expect("room for the connections");
        rdma
    });
    connected.collect()
}

impl Two {
    fn new(options: &Options) -> Self {
        let from = (0..BYTES).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect();
        Self { ranks: two(options), from, into: vec![0; BYTES], sequence: 0, told: Vec::new() }
    }

    /// Lets both ranks work until `done`, for so long at most. Whether it is.
    fn work(&mut self, most: Duration, mut done: impl FnMut(&Self, &[(usize, Event)]) -> bool) -> bool {
        let begin = Instant::now();
        loop {
            let mut heard = Vec::new();
            for (at, rank) in self.ranks.iter_mut().enumerate() {
                let mut events = Vec::new();
                rank.poll(&mut events);
                for event in events {
                    if let Event::Broken { peer, .. } = event {
                        rank.reopen(peer);
                    }
                    heard.push((at, event));
                }
            }
            let others =
                heard.iter().filter(|(_, event)| !matches!(event, Event::Sent(_) | Event::Received(_)));
            self.told.extend(others.cloned());
            if done(self, &heard) {
                return true;
            }
            if begin.elapsed() > most {
                return false;
            }
            std::thread::sleep(Duration::from_micros(10));
        }
    }

    fn stands(&self) -> bool {
        self.ranks.iter().all(|rank| !rank.is_disturbed())
    }

    /// Sends a large message, which arrives whole.
    fn send(&mut self) {
        self.sequence += 1;
        self.into.fill(0);
        let id = MessageId { communicator: 1, tag: 2, sequence: self.sequence, label: 4, chunk: 5 };
        let message = Message { id, fingerprint: [6, 7], bytes: BYTES };
        // SAFETY: both outlive the transports, which are declared before them.
        unsafe {
            self.ranks[1].post_recv(0, &message, self.into.as_mut_ptr(), Token(1));
            self.ranks[0].post_send(1, &message, self.from.as_ptr(), Token(2));
        }
        let mut ended = [false; 2];
        let all = self.work(Duration::from_secs(60), |_, heard| {
            for (at, event) in heard {
                ended[*at] |= matches!(event, Event::Sent(_) | Event::Received(_));
            }
            ended == [true; 2]
        });
        assert!(all, "a message hangs: {:?}", self.told);
        assert!(self.from == self.into, "wrong bytes");
    }

    /// Sends so many large messages over a connection that stands at first; the bytes that each NIC has sent meanwhile.
    fn share(&mut self, messages: usize) -> [u64; 2] {
        let opened = self.work(Duration::from_secs(30), |two, _| two.stands());
        assert!(opened, "no connection: {:?}", self.told);
        let count = || ["rxe0_0", "rxe0_1"].map(sent_by);
        let before = count();
        (0..messages).for_each(|_| self.send());
        let after = count();
        let sent = [after[0] - before[0], after[1] - before[1]];
        println!("bytes by each NIC: {sent:?}");
        sent
    }

    /// Whether a connection has broken for this reason.
    fn broke_because(&self, why: &str) -> bool {
        let named = |event: &Event| matches!(event, Event::Broken { cause: LostCause::Device { what, .. }, .. } if what.contains(why));
        self.told.iter().any(|(_, event)| named(event))
    }
}

/// Both have carried at least a third.
fn is_shared([first, second]: [u64; 2]) -> bool {
    first.min(second) * 3 >= first + second
}

#[test]
fn large_messages_are_shared_by_both() {
    if !testbed() {
        return;
    }
    for pairs in [1, 2] {
        let mut two = Two::new(&Options { pairs, ..Options::default() });
        assert!(is_shared(two.share(5)));
        assert!(two.told.is_empty(), "{:?}", two.told);
    }
}

#[test]
fn a_port_goes_down_and_comes_back() {
    if !testbed() {
        return;
    }
    let mut two = Two::new(&Options::default());
    assert!(is_shared(two.share(2)));
    shell("ip link set eth1 down");
    let begin = Instant::now();
    let broke = two.work(Duration::from_secs(10), |two, _| two.broke_because("port is down"));
    assert!(broke && begin.elapsed() < Duration::from_millis(500), "it is told at once: {:?}", two.told);
    let [first, second] = two.share(2);
    assert!(first > 2 * BYTES as u64 && second < 10_000, "the other carries all: {first} {second}");
    shell("ip link set eth1 up");
    assert!(two.work(Duration::from_secs(10), |two, _| two.broke_because("NIC is back")), "{:?}", two.told);
    assert!(is_shared(two.share(2)));
}

#[test]
fn a_nic_is_removed_under_way() {
    if !testbed() {
        return;
    }
    let again = "rdma link add rxe0_1 type rxe netdev eth1";
    let netdev = "ip link add h0n1 mtu 4200 type veth peer name eth1 mtu 4200 && ip link set eth1 addrgenmode none up && ip link set h0n1 up && \
         ip address add 10.77.1.1/24 dev eth1";
    for (removal, repair) in [
        ("rdma link delete rxe0_1", again.to_owned()),
        ("ip link delete eth1", format!("{netdev} && {again}")),
    ] {
        let mut two = Two::new(&Options::default());
        assert!(is_shared(two.share(2)));
        let (sender, removed) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || sender.send(shell(removal)));
        // Messages go on all the while.
        let mut took = None;
        while took.is_none() {
            two.send();
            took = removed.try_recv().ok();
        }
        assert!(took.is_some_and(|took| took < Duration::from_secs(10)), "{removal} waits for the program");
        thread.join().expect("no panic").expect("it is awaited");
        two.send();
        let broken = two.told.iter().any(|(_, event)| matches!(event, Event::Broken { .. }));
        assert!(broken, "{:?}", two.told);
        println!("{:?}", two.told);
        let before = sent_by("rxe0_0");
        two.send();
        assert!(sent_by("rxe0_0") > before + BYTES as u64);
        drop(two);
        shell(&repair);
    }
}

#[test]
fn a_rank_without_a_nic_has_lost_its_peers() {
    if !testbed() {
        return;
    }
    let mut two = Two::new(&Options::default());
    two.share(1);
    shell("rdma link delete rxe0_0 && rdma link delete rxe0_1");
    let begin = Instant::now();
    let gone = |event: &Event| matches!(event, Event::Lost { cause: LostCause::Device { what, .. }, .. } if what.contains("are gone"));
    let lost = two.work(Duration::from_secs(10), |two, _| two.told.iter().any(|(_, event)| gone(event)));
    assert!(lost, "{:?}", two.told);
    println!("lost after {:?}: {:?}", begin.elapsed(), two.told);
    drop(two);
    shell("rdma link add rxe0_0 type rxe netdev eth0 && rdma link add rxe0_1 type rxe netdev eth1");
}
