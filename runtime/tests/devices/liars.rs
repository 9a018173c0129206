//! Canaries: who breaks the rules of moving memory is found, and who keeps them is not harmed.

use std::time::Duration;

use windlass::accelerator::simulated::{Breach, Options};
use windlass::accelerator::{Accelerator, Condition, Operand, Place};
use windlass::{ReduceOp, threads_with};

use super::{accelerator, check, fill, shm, until};

#[test]
fn an_owner_that_goes_on_after_its_acknowledgement_is_found() {
    threads_with(2, &shm(), |comm| {
        let guarded = comm.rank() != 0;
        let accelerator = accelerator(comm.rank(), Options { guarded, ..Options::default() });
        let device = comm.attach(accelerator.clone()).unwrap();
        let mut buffer = device.alloc::<f32>(50_000).unwrap();
        fill(&mut buffer, comm.rank(), 0);
        buffer = comm.all_reduce(buffer, ReduceOp::Sum).wait().unwrap();
        assert_eq!(accelerator.audit(), []);
        if comm.rank() == 0 {
            let region = buffer.region();
            let generation = accelerator.status(region).unwrap().generation;
            accelerator.move_now(region).unwrap();
            until("it moves", || device.movements().moves == 1);
            // It kept the old place, and goes on writing there: what it does before the poison is put is not found.
            let old = Operand { place: Place::Own(region, generation), offset: 8 };
            until("it is found", || {
                accelerator.write(old, &[1, 2, 3]).unwrap();
                let found = accelerator.audit();
                assert!(found.is_empty() || found == [Breach::StaleStore { region, generation, offset: 8 }]);
                !found.is_empty()
            });
        }
        check(&buffer, 2, 0);
        comm.blocking().barrier().unwrap();
    })
    .unwrap();
}

/// Rank 0 acknowledges each move at once, whatever works on the memory. The breaches found, and whether all results were right.
fn acknowledged_behind_the_runtime_s_back(guarded: bool) -> (usize, bool) {
    let results = threads_with(2, &shm(), |comm| {
        let chunk_bytes = 16 << 10;
        let accelerator = accelerator(comm.rank(), Options { guarded, chunk_bytes, ..Options::default() });
        let device = comm.attach(accelerator.clone()).unwrap();
        let mut buffer = device.alloc::<f32>(400_000).unwrap();
        let (mut breaches, mut right) = (0, true);
        // Where the cores are busy elsewhere, a move may take many rounds to meet an engine at work.
        for round in 0..500 {
            fill(&mut buffer, comm.rank(), round);
            comm.blocking().barrier().unwrap();
            let region = buffer.region();
            let operation = comm.all_reduce(buffer, ReduceOp::Sum);
            if comm.rank() == 0 {
                for _ in 0..10 {
                    let _ = accelerator.move_now(region);
                    if let Ok(status) = accelerator.status(region)
                        && let Condition::MoveAsked { ticket, .. } = status.condition
                    {
                        let _ = accelerator.acknowledge(ticket);
                    }
                    std::thread::sleep(Duration::from_micros(300));
                }
            }
            buffer = operation.wait().unwrap();
            let mut values = vec![0.0; buffer.len()];
            buffer.read(&mut values).unwrap();
            right &= values.iter().enumerate().all(|(i, &is)| is == super::sum(2, round, i));
            breaches += accelerator.audit().len();
            let mut met = [u8::from(breaches > 0)];
            comm.blocking().all_reduce(&mut met, ReduceOp::Max).unwrap();
            if met[0] == 1 && round > 8 {
                break;
            }
        }
        (breaches, right)
    })
    .unwrap();
    results.into_iter().fold((0, true), |(a, b), (c, d)| (a + c, b && d))
}

#[test]
fn memory_that_leaves_under_the_engines_is_noticed_and_the_work_done_again() {
    let (breaches, right) = acknowledged_behind_the_runtime_s_back(true);
    assert!(breaches > 0, "no move met an engine at work");
    assert!(right, "what was at work was done again");
}

#[test]
fn engines_that_do_not_look_are_found() {
    let (breaches, _) = acknowledged_behind_the_runtime_s_back(false);
    assert!(breaches > 0, "nothing was found");
}
