//! Which rails and which lanes are chosen, case by case.

use super::*;

fn lanes(count: usize) -> Lanes<()> {
    Lanes::new((0..count).map(|at| Lane::new(number(at, 0), at, (), 20)).collect())
}

fn rails<const N: usize>(rails: [usize; N]) -> Rails {
    rails.into_iter().collect()
}

/// Writes bytes by the lane that is chosen; which rail that is.
fn write(lanes: &mut Lanes<()>, bytes: usize) -> usize {
    let lane = lanes.choose(|_| true).expect("a lane with room");
    let (number, rail) = (lane.number, lane.rail);
    lanes.begin(number, Work::Bytes, bytes);
    rail
}

#[test]
fn large_messages_go_by_all_lanes_and_small_ones_by_one() {
    let mut all = lanes(4);
    let went: Vec<_> = (0..8).map(|_| write(&mut all, 256 << 10)).collect();
    assert_eq!((0..4).map(|rail| went.iter().filter(|&&of| of == rail).count()).collect::<Vec<_>>(), [2; 4]);
    let mut all = lanes(2);
    let went: Vec<_> = (0..16).map(|_| write(&mut all, 64)).collect();
    assert_eq!(went, [0; 16]);
}

#[test]
fn a_lane_that_is_slow_gets_less() {
    let mut both = lanes(2);
    let mut went = [0; 2];
    for _ in 0..30 {
        let rail = write(&mut both, LEAD as usize);
        went[rail] += 1;
        // The first completes at once, the second never.
        if rail == 0 {
            both.completed(number(0, 0), Work::Bytes);
        }
    }
    assert!(went[1] <= 2 && went[0] >= 28, "{went:?}");
}

#[test]
fn what_only_some_nics_know_goes_by_those() {
    let mut both = lanes(2);
    for _ in 0..5 {
        let number = both.choose(|rail| rail == 1).expect("it has room").number;
        assert_eq!(number, super::number(1, 0));
        both.begin(number, Work::Bytes, 1 << 20);
    }
    assert!(both.choose(|rail| rail == 2).is_none());
    // The lane that is idle does for what both ends know by it, and for a copy where none does.
    let keys = |rails: &[usize]| rails.iter().map(|&rail| (rail, 70 + rail as u32)).collect::<Keys>();
    let way = |keys: Keys, known: &[usize]| {
        let way = both.way_to_place(&keys, |rail| known.contains(&rail).then_some((1, rail as u32)));
        way.map(|way| (way.lane, way.remote_key, way.local))
    };
    let [first, second] = [number(0, 0), number(1, 0)];
    assert_eq!(way(keys(&[0, 1]), &[0, 1]), Some((first, 70, Some((1, 0)))));
    assert_eq!(way(keys(&[0, 1]), &[1]), Some((second, 71, Some((1, 1)))));
    assert_eq!(way(keys(&[1]), &[0]), Some((second, 71, None)));
    assert_eq!(way(keys(&[0, 1]), &[]), Some((first, 70, None)));
    assert_eq!(way(keys(&[2]), &[2]), None);
}

#[test]
fn full_lanes_are_not_chosen_and_keep_room_for_a_credit_and_a_farewell() {
    let mut both = lanes(2);
    let mut count = 0;
    while let Some(lane) = both.choose(|_| true) {
        let number = lane.number;
        both.begin(number, Work::Bytes, 1);
        count += 1;
    }
    assert_eq!(count, 2 * (20 - KEPT));
    assert!(!both.has_room() && both.choose_for_credit().is_some());
    assert!(both.iter().all(|lane| lane.writes + KEPT == lane.capacity));
}

#[test]
fn completions_end_all_before_them_on_their_lane() {
    let mut both = lanes(2);
    let [first, second] = [number(0, 0), number(1, 0)];
    for at in 1..=7 {
        assert!(!both.begin(first, Work::Bytes, 10), "{at}");
    }
    assert!(both.begin(first, Work::Bytes, 10), "the eighth");
    assert!(both.begin(second, Work::Bytes, LEAD as usize), "one that counts");
    assert!(both.begin(second, Work::Credit, 0));
    both.completed(first, Work::Bytes);
    let under_way =
        |lanes: &Lanes<()>| lanes.iter().map(|lane| (lane.writes, lane.bytes)).collect::<Vec<_>>();
    assert_eq!(under_way(&both), [(0, 0), (2, LEAD)]);
    both.completed(second, Work::Bytes);
    both.completed(second, Work::Credit);
    assert_eq!(under_way(&both), [(0, 0), (0, 0)]);
    // Where there is no choice, few completions will do.
    let mut one = lanes(1);
    assert!(!one.begin(first, Work::Bytes, 1 << 20));
}

#[test]
fn a_farewell_follows_the_writes_of_every_lane() {
    let mut both = lanes(2);
    write(&mut both, 100);
    assert!(!both.have_left());
    let mut said = Vec::new();
    while let Some(number) = both.lacks_farewell() {
        assert!(both.begin(number, Work::Farewell, 0));
        said.push(number);
    }
    assert_eq!(said, [number(0, 0), number(1, 0)]);
    for number in said {
        assert!(!both.have_left());
        both.completed(number, Work::Farewell);
    }
    assert!(both.have_left());
}

#[test]
fn rails_that_fail_are_left_out_while_another_is_left() {
    let now = Instant::now();
    let mut record = Record::new(2);
    let both = rails([0, 1]);
    let offered = |record: &Record, present, up, now| record.offered(0, present, up, None, now);
    assert_eq!(offered(&record, both, both, now), both);
    record.fail(1, now);
    assert_eq!(offered(&record, both, both, now), rails([0]));
    // It rests for a while, or until it is forgiven.
    assert_eq!(offered(&record, both, both, now + REST), both);
    let mut forgiven = record.clone();
    forgiven.forgive(rails([1]));
    assert_eq!(offered(&forgiven, both, both, now), both);
    // A lone rail is tried, whatever it has done; one that is down, when there is nothing else; one that was removed never.
    assert_eq!(offered(&record, rails([1]), both, now), rails([1]));
    assert_eq!(offered(&record, both, rails([1]), now), rails([1]));
    assert_eq!(offered(&record, both, Rails::default(), now), both);
    record.fail(0, now);
    assert_eq!(offered(&record, both, both, now), both);
    assert_eq!(offered(&record, Rails::default(), both, now), Rails::default());
}

#[test]
fn both_ends_take_what_both_have() {
    let now = Instant::now();
    let all = Rails::first(4);
    let mut record = Record::new(4);
    assert_eq!(record.offered(0, all, all, Some(rails([1, 3, 9])), now), rails([1, 3]));
    // What the peer has offered is tried before nothing is.
    record.fail(1, now);
    assert_eq!(record.offered(0, all, all, Some(rails([1])), now), rails([1]));
    assert_eq!(record.offered(0, all, all, Some(rails([9])), now), rails([0, 2, 3]));
}

#[test]
fn a_rail_that_the_peer_offers_anew_is_tried() {
    let now = Instant::now();
    let (mut record, both) = (Record::new(2), Rails::first(2));
    record.fail(1, now);
    // The peer has not noticed anything.
    record.hear(both);
    assert_eq!(record.offered(0, both, both, Some(both), now), rails([0]));
    record.hear(rails([0]));
    record.hear(both);
    assert_eq!(record.offered(0, both, both, Some(both), now), both);
}

#[test]
fn hosts_with_many_nics_use_them_all() {
    let (now, all) = (Instant::now(), Rails::first(8));
    let record = Record::new(8);
    let used = |first| record.offered(first, all, all, None, now);
    assert_eq!(used(0), rails([0, 1, 2, 3]));
    assert_eq!(used(6), rails([6, 7, 0, 1]));
    let together = (0..8).flat_map(|first| used(first).iter().collect::<Vec<_>>()).collect::<Rails>();
    assert_eq!(together, all);
}
