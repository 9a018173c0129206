//! Single stories of the owner's machine and the ledgers, for those who read before they search.

use windlass::scheduler::table::owner::State;
use windlass::scheduler::{
    Access, Chunk, Descriptor, Generation, Ledger, Limits, Notice, Place, Receipt, Reduction, Refusal,
    Region, RegionAction, RegionError, RegionName, Replacement, Ticket,
};

const NAME: RegionName = RegionName { owner: 0, segment: 1 };
const G0: Generation = Generation(0);

fn actions(region: &mut Region) -> Vec<RegionAction> {
    std::iter::from_fn(|| region.poll_action()).collect()
}

/// An active region with rank 1 by this access, and its first actions taken.
fn active(access: Access) -> Region {
    let limits = Limits { drain_ns: 10, return_ns: 1000 };
    let mut region = Region::new(NAME, Descriptor(0), &[(1, access)], limits);
    region.handle_registered(0);
    assert_eq!(actions(&mut region).len(), 3, "register, resume, advertise");
    region
}

fn ask(ticket: u64, deadline_ns: u64) -> Notice {
    Notice::Move { ticket: Ticket(ticket), deadline_ns }
}

fn placed(ticket: Option<u64>, descriptor: u64) -> Notice {
    let outcome = Replacement::Preserved(Descriptor(descriptor));
    Notice::Replaced { ticket: ticket.map(Ticket), outcome }
}

#[test]
fn a_move_deregisters_before_it_acknowledges() {
    let mut region = active(Access::Mapped);
    let lease = region.lease().unwrap();
    region.handle_notice(ask(1, 100), 0);
    assert_eq!(actions(&mut region), [RegionAction::Withdraw { to: 1, generation: G0 }]);
    assert!(region.lease().is_err(), "the next chunk waits");
    region.handle_withdrawn(1, G0, 1).unwrap();
    assert!(region.handle_withdrawn(1, G0, 1).is_err(), "one answer");
    assert_eq!(actions(&mut region), [], "a chunk is under way here");
    region.give_back(lease, 2);
    assert_eq!(actions(&mut region), [RegionAction::Deregister]);
    region.handle_notice(ask(2, 100), 2);
    region.handle_deregistered(3);
    let done = |ticket| RegionAction::Acknowledge { ticket: Ticket(ticket) };
    assert_eq!(actions(&mut region), [done(1), done(2)], "tickets are merged");
    region.handle_notice(ask(3, 100), 3);
    assert_eq!(actions(&mut region), [done(3)], "asked inside the answer");
    region.handle_notice(placed(Some(1), 5), 4);
    assert_eq!(actions(&mut region), [], "the last ticket's replacement counts");
    region.handle_notice(placed(Some(3), 6), 4);
    let (generation, descriptor) = (Generation(1), Descriptor(6));
    assert_eq!(actions(&mut region), [RegionAction::Register { generation, descriptor }]);
    region.handle_registered(5);
    let advertise = RegionAction::Advertise { to: 1, generation, descriptor };
    assert_eq!(actions(&mut region), [RegionAction::Resume { generation }, advertise]);
    assert!(region.admits(1, generation) && !region.admits(1, G0) && region.admits(0, generation));
}

#[test]
fn a_stopped_peer_refuses_a_move_by_name_and_hears_of_nothing_until_it_answers() {
    let mut region = active(Access::Mapped);
    region.handle_notice(ask(1, 100), 0);
    actions(&mut region);
    assert_eq!(region.deadline_ns(), Some(100), "a mapping cannot be broken");
    region.handle_time(100);
    let refusal = Refusal::TimedOut { waiting_on: vec![1] };
    let (ticket, generation) = (Ticket(1), Generation(1));
    let expected = [RegionAction::Refuse { ticket, refusal }, RegionAction::Resume { generation }];
    assert_eq!(actions(&mut region), expected);
    region.handle_withdrawn(1, G0, 900).unwrap();
    let descriptor = Descriptor(0);
    assert_eq!(actions(&mut region), [RegionAction::Advertise { to: 1, generation, descriptor }]);
}

#[test]
fn a_queue_pair_is_broken_in_time_for_the_ticket() {
    let mut region = active(Access::Key);
    region.handle_notice(ask(1, 100), 0);
    actions(&mut region);
    assert_eq!(region.deadline_ns(), Some(10));
    region.handle_time(10);
    assert_eq!(actions(&mut region), [RegionAction::Break { rank: 1 }]);
    region.handle_broken(1, 11);
    assert_eq!(actions(&mut region), [RegionAction::Deregister]);
}

#[test]
fn a_revoke_waits_for_nobody_and_refuses_what_was_asked() {
    let mut region = active(Access::Mapped);
    region.handle_notice(ask(1, 100), 0);
    actions(&mut region);
    region.handle_notice(Notice::Revoke, 1);
    let refusal = Refusal::Revoked { generation: G0 };
    let refused = RegionAction::Refuse { ticket: Ticket(1), refusal };
    assert_eq!(actions(&mut region), [refused, RegionAction::Deregister]);
    region.handle_notice(Notice::Replaced { ticket: None, outcome: Replacement::Lost }, 2);
    region.handle_deregistered(3);
    let error = RegionError::RegionRevoked { region: NAME, generation: G0 };
    assert_eq!(
        actions(&mut region),
        [RegionAction::Fail(error), RegionAction::End { to: 1, generation: G0 }]
    );
}

#[test]
fn a_revoke_during_registration_begins_the_next_generation() {
    let limits = Limits { drain_ns: 10, return_ns: 1000 };
    let mut region = Region::new(NAME, Descriptor(0), &[], limits);
    region.handle_notice(Notice::Revoke, 0);
    region.handle_notice(placed(None, 1), 0);
    region.handle_unregistrable(14, 1);
    region.handle_registered(2);
    assert_eq!((region.state(), region.generation()), (State::Active, Generation(1)));
}

#[test]
fn an_exporter_that_never_returns_fails_the_operations() {
    let mut region = active(Access::Mapped);
    region.handle_notice(ask(1, 100), 0);
    region.handle_death(1, 1);
    region.handle_deregistered(2);
    actions(&mut region);
    region.handle_time(1002);
    let error = RegionError::NotReturned { region: NAME, generation: G0, after_ns: 1000 };
    assert_eq!(actions(&mut region), [RegionAction::Fail(error)], "and the dead are told nothing");
}

#[test]
fn freed_memory_is_acknowledged_once_and_then_every_notice_is_answered_or_ignored() {
    let mut region = active(Access::Mapped);
    region.handle_notice(Notice::Free { ticket: Ticket(1), deadline_ns: 100 }, 0);
    assert_eq!(actions(&mut region).len(), 3, "fail, withdraw, end");
    assert!(!region.is_silent());
    region.handle_withdrawn(1, G0, 1).unwrap();
    region.handle_deregistered(2);
    actions(&mut region);
    assert!(region.is_silent() && region.state() == State::Freed);
    for notice in [Notice::Revoke, Notice::Announce(Descriptor(4)), placed(None, 4)] {
        region.handle_notice(notice, 3);
        assert_eq!(actions(&mut region), []);
    }
    region.handle_notice(ask(9, 100), 3);
    assert_eq!(actions(&mut region), [RegionAction::Acknowledge { ticket: Ticket(9) }]);
}

#[test]
fn the_receiver_decides_what_is_done_again() {
    let (mut ledger, mut receipt) = (Ledger::new(5, 3), Receipt::new(5));
    for chunk in 0..3 {
        assert_eq!(ledger.poll_idle(5), Some(chunk));
        ledger.handle_started(chunk, G0);
    }
    assert_eq!(ledger.poll_idle(5), None, "the window is full");
    ledger.handle_written(0).unwrap();
    ledger.handle_written(2).unwrap();
    receipt.handle_arrived(0).unwrap();
    receipt.handle_arrived(2).unwrap();
    ledger.handle_break(receipt.handle_break()).unwrap();
    assert_eq!(
        (ledger.delivered(), ledger.poll_idle(5)),
        (1, Some(2)),
        "chunk 1 is still being written, in vain"
    );
    ledger.handle_written(1).unwrap();
    assert_eq!(ledger.chunk(1), Some(Chunk::Idle));
    receipt.handle_arrived(1).unwrap();
    assert_eq!(receipt.watermark(), 2, "what came out of order is forgotten");
    assert!(ledger.handle_delivered(4).is_err(), "chunk 3 was never begun");
    assert!(receipt.handle_arrived(5).is_err());
    ledger.handle_end();
    assert_eq!(ledger.poll_idle(5), None, "nothing is written into an operation that is over");
}

#[test]
fn scratch_is_held_until_every_output_has_the_chunk() {
    let mut reduction = Reduction::new(3, 1, 2, true);
    assert_eq!(reduction.poll_sum(), Some((0, Place::Slot(0))));
    assert_eq!(reduction.poll_commit(0), None, "nothing is summed");
    reduction.handle_summing(0);
    reduction.handle_broken(0);
    reduction.handle_summing(0);
    reduction.handle_summed(0);
    for output in 0..2 {
        assert_eq!(reduction.poll_sum(), None, "the slot is taken");
        assert_eq!(reduction.poll_commit(output), Some((0, Place::Slot(0))));
        reduction.ledger_mut(output).handle_started(0, G0);
        reduction.ledger_mut(output).handle_delivered(1).unwrap();
        reduction.handle_watermarks();
    }
    assert_eq!(reduction.poll_sum(), Some((1, Place::Slot(0))));
    assert_eq!(Reduction::new(1, 1, 1, false).poll_sum(), Some((0, Place::Output)));
}
