//! The recipe for a scheduler: an in-place all-reduce over memory that is revoked all the time.
//!
//! Each rank owns a part. It reduces that part of all inputs to scratch, which overwrites nothing that a redo reads; when all ranks
//! have done so, it commits its scratch to all outputs, which a redo only repeats. Whatever ends stale is bound anew and done again.

use super::*;

const COUNT: usize = 6000;
const RANKS: usize = 3;
const PART: usize = COUNT / RANKS;

struct Rank {
    device: Device,
    buffer: Region,
    scratch: Region,
}

fn rank(number: u64) -> Rank {
    let device = Device::new(Options {
        movement: Movement::Revocable,
        revokes_per_second: 60.0,
        replacement_time: 2 * TICK,
        chunk_bytes: 500,
        fence_delay: Duration::ZERO..=TICK,
        seed: number,
        ..Options::default()
    });
    let buffer = device.accelerator.allocate(4 * COUNT as u64).unwrap();
    let scratch = device.accelerator.allocate(4 * PART as u64).unwrap();
    Rank { device, buffer, scratch }
}

/// Every rank's buffer from part `part` on, as rank `me` reaches it now; `None` while one is away.
fn bind(ranks: &[Rank], me: usize, part: usize) -> Option<Vec<Operand>> {
    let offset = (4 * PART * part) as u64;
    let reach = |(of, rank): (usize, &Rank)| {
        let generation = rank.device.generation(rank.buffer);
        if of == me {
            return Some(Operand { place: Place::Own(rank.buffer, generation), offset });
        }
        let export = rank.device.export(rank.buffer, generation).ok()?;
        Some(imported(ranks[me].device.import(&export).ok()?, offset))
    };
    ranks.iter().enumerate().map(reach).collect()
}

/// Runs one piece of work on every rank until each has ended well; returns how often one was stale.
fn phase(ranks: &[Rank], combine: Combine, commit: bool) -> usize {
    let (mut fences, mut stale) = (vec![None::<Fence>; RANKS], 0);
    for _ in 0..10_000 {
        for (me, rank) in ranks.iter().enumerate() {
            match fences[me].as_ref().map(Fence::outcome) {
                Some(None | Some(Ok(()))) => {}
                Some(Some(Err(error))) => {
                    assert!(matches!(error, AcceleratorError::Stale { .. }), "{error}");
                    stale += 1;
                    fences[me] = None;
                }
                None => {
                    let Some(all) = bind(ranks, me, me) else { continue };
                    let scratch = [rank.device.own(rank.scratch, 0)];
                    let (inputs, outputs) =
                        if commit { (&scratch[..], &all[..]) } else { (&all[..], &scratch[..]) };
                    let work = Work { combine, divisor: 1, count: PART as u64, inputs, outputs, after: None };
                    fences[me] = Some(rank.device.accelerator.submit(&work).unwrap());
                    // The work holds what it needs.
                    for operand in all {
                        if let Place::Imported(import) = operand.place {
                            rank.device.accelerator.release(import).unwrap();
                        }
                    }
                }
            }
        }
        if fences.iter().all(|fence| fence.as_ref().is_some_and(|f| f.outcome() == Some(&Ok(())))) {
            return stale;
        }
        for rank in ranks {
            // A chunk a tick, so that revokes come in the middle.
            rank.device.now.set(rank.device.now.get() + TICK);
            rank.device.step();
            rank.device.notices();
        }
    }
    panic!("the phase does not end");
}

#[test]
fn an_all_reduce_counts_every_element_once_whatever_is_revoked() {
    let ranks: Vec<Rank> = (0..RANKS as u64).map(rank).collect();
    let mut stale = [0, 0];
    for round in 0..20 {
        for (r, rank) in ranks.iter().enumerate() {
            let values: Vec<u8> =
                (0..COUNT as i32).flat_map(|i| (i + round * (r as i32 + 1)).to_le_bytes()).collect();
            while rank.device.accelerator.write(rank.device.own(rank.buffer, 0), &values).is_err() {
                rank.device.advance(TICK);
            }
        }
        stale[0] += phase(&ranks, Combine::reduce(DataType::I32, ReduceOp::Sum), false);
        stale[1] += phase(&ranks, Combine::copy(DataType::I32), true);
        let sum: Vec<u8> = (0..COUNT as i32).flat_map(|i| (3 * i + 6 * round).to_le_bytes()).collect();
        for rank in &ranks {
            while rank.device.export(rank.buffer, rank.device.generation(rank.buffer)).is_err() {
                rank.device.advance(TICK);
            }
            assert!(rank.device.bytes(rank.buffer) == sum, "round {round}");
        }
    }
    assert!(stale.iter().all(|&stale| stale > 5), "both phases were disturbed: {stale:?}");
    assert!(ranks.iter().all(|rank| rank.device.accelerator.audit().is_empty()));
}
