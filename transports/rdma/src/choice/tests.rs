//! The choice on machines that are not here.

use super::*;
use crate::verbs::Mtu;

fn port(number: u8, state: PortState, link: LinkLayer) -> Port {
    Port { number, state, mtu: Mtu::from_bytes(1024).unwrap(), link, lid: 0, gid_slots: 8 }
}

fn entry(index: u8, address: &str, kind: GidKind) -> GidEntry {
    let octets = match address.parse().unwrap() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    GidEntry { index, gid: Gid(octets), kind, interface: Some("eth0".to_owned()) }
}

fn roce(name: &str, state: PortState, gids: Vec<GidEntry>) -> Found {
    Found { name: name.into(), ports: Ok(vec![(port(1, state, LinkLayer::Ethernet), gids)]) }
}

fn usual(address: &str) -> Vec<GidEntry> {
    vec![
        entry(0, "fe80::1", GidKind::RoceV1),
        entry(1, "fe80::1", GidKind::RoceV2),
        entry(2, address, GidKind::RoceV1),
        entry(3, address, GidKind::RoceV2),
    ]
}

fn host(addresses: &[&str], devices: Vec<Found>) -> Facts {
    Facts { devices, addresses: addresses.iter().map(|a| a.parse().unwrap()).collect() }
}

fn wish(devices: &[&str]) -> Wishes {
    Wishes { devices: devices.iter().map(|d| (*d).to_owned()).collect(), gid_index: None }
}

fn names(choice: &Choice) -> Vec<(&str, u8, u8)> {
    choice.rails.iter().map(|r| (&*r.device, r.port, r.gid_index)).collect()
}

#[test]
fn roce_v2_of_an_ipv4_address_is_preferred() {
    let facts = host(
        &["127.0.0.1", "10.0.0.1", "fe80::1"],
        vec![roce("mlx5_0", PortState::Active, usual("10.0.0.1"))],
    );
    let choice = choose(&facts, &Wishes::default()).unwrap();
    assert_eq!(names(&choice), [("mlx5_0", 1, 3)]);
    assert!(choice.rails[0].reason.contains("IPv4") && choice.rejected.is_empty());
    // The next best, each time the best is missing.
    let mut facts = facts;
    let take = |facts: &mut Facts, index| {
        facts.devices[0].ports.as_mut().unwrap()[0].1.retain(|entry| entry.index != index);
        choose(facts, &Wishes::default()).unwrap().rails[0].clone()
    };
    let second = take(&mut facts, 3);
    assert_eq!((second.gid_index, second.kind), (1, GidKind::RoceV2));
    assert!(second.reason.contains("link-local"));
    let third = take(&mut facts, 1);
    assert_eq!((third.gid_index, third.kind), (0, GidKind::RoceV1));
    assert!(third.reason.contains("not RoCE v2"));
}

#[test]
fn devices_of_other_namespaces_are_left_out() {
    let facts = host(
        &["127.0.0.1", "10.77.0.1", "10.77.1.1"],
        vec![
            roce("rxe0_0", PortState::Active, usual("10.77.0.1")),
            roce("rxe0_1", PortState::Active, usual("10.77.1.1")),
            roce("rxe1_0", PortState::Active, usual("10.77.0.2")),
        ],
    );
    let choice = choose(&facts, &Wishes::default()).unwrap();
    assert_eq!(names(&choice), [("rxe0_0", 1, 3), ("rxe0_1", 1, 3)]);
    let text = choice.rejected[0].to_string();
    assert!(
        text.contains("rxe1_0 port 1") && text.contains("10.77.0.2") && text.contains("namespace"),
        "{text}"
    );
}

#[test]
fn ports_that_are_down_are_left_out_and_all_reasons_told() {
    let facts = host(
        &["10.0.0.1"],
        vec![
            roce("mlx5_0", PortState::Down, usual("10.0.0.1")),
            roce("mlx5_1", PortState::Active, Vec::new()),
            Found { name: "mlx5_2".into(), ports: Ok(Vec::new()) },
        ],
    );
    let error = choose(&facts, &Wishes::default()).unwrap_err();
    let text = error.to_string();
    for part in
        ["mlx5_0 port 1: the port is down", "mlx5_1 port 1: the port has no GID", "mlx5_2: it has no port"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert!(matches!(error, NoChoice::AllRejected { rejected } if rejected.len() == 3));
    assert_eq!(choose(&host(&[], Vec::new()), &Wishes::default()), Err(NoChoice::NoDevice));
}

#[test]
fn the_loopback_interface_serves_where_nothing_else_does() {
    let lo = || roce("rxe_lo", PortState::Active, vec![entry(1, "127.0.0.1", GidKind::RoceV2)]);
    let alone = choose(&host(&["127.0.0.1"], vec![lo()]), &Wishes::default()).unwrap();
    assert_eq!(names(&alone), [("rxe_lo", 1, 1)]);
    let facts =
        host(&["127.0.0.1", "10.0.0.1"], vec![lo(), roce("rxe0", PortState::Active, usual("10.0.0.1"))]);
    let choice = choose(&facts, &Wishes::default()).unwrap();
    assert_eq!(names(&choice), [("rxe0", 1, 3)]);
    assert_eq!(choice.rejected[0].reason, Reason::Loopback);
    // Who names it gets it.
    assert_eq!(names(&choose(&facts, &wish(&["rxe_lo"])).unwrap()), [("rxe_lo", 1, 1)]);
}

#[test]
fn infiniband_needs_no_address() {
    let gids = vec![entry(0, "fe80::2", GidKind::InfiniBand)];
    let ports = Ok(vec![
        (port(1, PortState::Init, LinkLayer::InfiniBand), gids.clone()),
        (port(2, PortState::Active, LinkLayer::InfiniBand), gids),
    ]);
    let facts = host(&[], vec![Found { name: "mlx5_0".into(), ports }]);
    let choice = choose(&facts, &Wishes::default()).unwrap();
    assert_eq!(names(&choice), [("mlx5_0", 2, 0)]);
    assert_eq!(choice.rejected[0].reason, Reason::NotActive(PortState::Init));
}

#[test]
fn the_user_s_word_counts() {
    let two = |name| {
        let gids = usual("10.0.0.1");
        let ports = [1, 2].map(|n| (port(n, PortState::Active, LinkLayer::Ethernet), gids.clone()));
        Found { name, ports: Ok(ports.to_vec()) }
    };
    let facts = host(&["10.0.0.1"], vec![two("a".into()), two("b".into()), two("c".into())]);
    let chosen = |devices: &[&str]| {
        let choice = choose(&facts, &wish(devices)).unwrap();
        names(&choice).into_iter().map(|(d, p, _)| format!("{d}{p}")).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&["b:2", "a"]), ["b2", "a1", "a2"]);
    assert_eq!(chosen(&["c"]), ["c1", "c2"]);
    let wishes = Wishes { gid_index: Some(0), ..Wishes::default() };
    assert!(choose(&facts, &wishes).unwrap().rails.iter().all(|r| r.gid_index == 0));
    let wishes = Wishes { gid_index: Some(9), ..Wishes::default() };
    assert!(choose(&facts, &wishes).unwrap_err().to_string().contains("place 9"));
    for wrong in ["d", "a:3", "a:x", "a:", "", "a:1:1"] {
        let error = choose(&facts, &wish(&[wrong])).unwrap_err();
        assert!(matches!(&error, NoChoice::Unknown { name, .. } if name == wrong), "{wrong}: {error}");
        assert!(error.to_string().contains("a, b, c"), "{error}");
    }
}

#[test]
fn a_device_that_does_not_answer_is_no_obstacle() {
    let error = VerbError { verb: "ibv_open_device", device: "broken".into(), errno: libc::EACCES };
    let facts = host(
        &["10.0.0.1"],
        vec![
            Found { name: "broken".into(), ports: Err(error) },
            roce("mlx5_0", PortState::Active, usual("10.0.0.1")),
        ],
    );
    let choice = choose(&facts, &Wishes::default()).unwrap();
    assert_eq!(names(&choice), [("mlx5_0", 1, 3)]);
    assert!(choice.rejected[0].to_string().contains("/dev/infiniband"), "{}", choice.rejected[0]);
    // Named, it is the reason why nothing works.
    let text = choose(&facts, &wish(&["broken"])).unwrap_err().to_string();
    assert!(
        text.contains("broken: it does not answer") && text.contains("mlx5_0: WINDLASS_RDMA_DEVICES"),
        "{text}"
    );
}

#[test]
fn this_host_has_addresses() {
    let found = addresses();
    assert!(found.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)), "{found:?}");
}
