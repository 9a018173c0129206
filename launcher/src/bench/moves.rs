//! What moves of device memory have cost while the bench ran.

use std::time::Duration;

use windlass::{Communicator, Device, Error};

/// A line of each kind of time, of all ranks. Every rank calls it.
pub(super) fn lines(communicator: &Communicator, device: &Device) -> Result<Vec<String>, Error> {
    let movements = device.movements();
    let mut moves = vec![0i64; communicator.size() as usize];
    communicator.blocking().all_gather_into(&[movements.moves as i64], &mut moves)?;
    let kinds = [
        ("drain", &movements.drains, "from the question until nobody touches the memory"),
        ("pause", &movements.pauses, "until work goes on, the accelerator's copy included"),
        ("return", &movements.returns, "from the copy's end until the first piece of work is done"),
        ("engine", &movements.first_pieces, "of that, the engine's work, which faults pages anew"),
    ];
    let mut lines = vec![
        format!("# {} moves", moves.iter().sum::<i64>()),
        format!("# {:>8} {:>10} {:>10} {:>10}  us", "", "p50", "p99", "max"),
    ];
    for (name, times, what) in kinds {
        let times = gather(communicator, times)?;
        let at = |part: f64| {
            let last = times.len().checked_sub(1)?;
            times.get((part * last as f64).round() as usize).copied()
        };
        let [median, high, most] =
            [0.5, 0.99, 1.0].map(|part| at(part).map_or_else(|| "-".to_owned(), |time| format!("{time:.1}")));
        lines.push(format!("# {name:>8} {median:>10} {high:>10} {most:>10}  {what}"));
    }
    Ok(lines)
}

/// All ranks' times, sorted, in µs.
fn gather(communicator: &Communicator, times: &[Duration]) -> Result<Vec<f64>, Error> {
    let mut counts = vec![0i64; communicator.size() as usize];
    communicator.blocking().all_gather_into(&[times.len() as i64], &mut counts)?;
    let most = counts.iter().copied().max().unwrap_or(0) as usize;
    let mut own: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
    own.resize(most, f64::NAN);
    let mut all = vec![0.0; most * counts.len()];
    communicator.blocking().all_gather_into(&own, &mut all)?;
    all.retain(|time| !time.is_nan());
    all.sort_unstable_by(f64::total_cmp);
    Ok(all)
}
