//! What happens when: a radix heap (Ahuja, Mehlhorn, Orlin and Tarjan 1990). Time never goes back, so that an entry only moves to buckets
//! nearer to the present, and pushing and popping go through memory in order.

use std::collections::VecDeque;

/// Picoseconds: a byte takes less than a nanosecond.
pub(super) type Time = u64;

/// Picoseconds from nanoseconds.
pub(super) fn picoseconds(ns: f64) -> Time {
    (ns * 1e3).round() as Time
}

/// Entries by time, those of one time in the order of their pushing.
#[derive(Debug)]
pub(super) struct Agenda<E> {
    /// What happens now.
    present: VecDeque<E>,
    /// Bucket `b` has the times whose highest bit that differs from `now` is bit `b`. Alike times are in one bucket, whenever they
    /// were pushed, and keep their order.
    buckets: [Vec<(Time, E)>; 64],
    now: Time,
    spare: Vec<(Time, E)>,
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        let buckets = std::array::from_fn(|_| Vec::new());
        Self { present: VecDeque::new(), buckets, now: 0, spare: Vec::new() }
    }
}

impl<E> Agenda<E> {
    /// Puts `entry` at `time`, which is not before what was popped last.
    pub(super) fn push(&mut self, time: Time, entry: E) {
        debug_assert!(time >= self.now, "time does not go back");
        match (time ^ self.now).checked_ilog2() {
            None => self.present.push_back(entry),
            Some(bucket) => self.buckets[bucket as usize].push((time, entry)),
        }
    }

    /// The earliest.
    pub(super) fn pop(&mut self) -> Option<(Time, E)> {
        if self.present.is_empty() {
            let nearest = self.buckets.iter().position(|bucket| !bucket.is_empty())?;
            let mut entries = std::mem::replace(&mut self.buckets[nearest], std::mem::take(&mut self.spare));
            self.now = entries.iter().map(|(time, _)| *time).min()?;
            entries.drain(..).for_each(|(time, entry)| self.push(time, entry));
            self.spare = entries;
        }
        Some((self.now, self.present.pop_front()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first_is_popped_first() {
        let (mut agenda, mut expected) = (Agenda::default(), std::collections::BTreeMap::<u64, u32>::new());
        let (mut word, mut now, mut order, mut last) = (1_u64, 0, 0_u64, (0, 0));
        for _ in 0..100_000 {
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            if word >> 62 != 0 {
                let time = now + (word >> 20) % (1 << (word >> 8 & 31));
                agenda.push(time, (time, order));
                order += 1;
                *expected.entry(time).or_default() += 1;
            } else if let Some((time, entry)) = agenda.pop() {
                assert!(entry.0 == time && entry >= last, "in order of time, then of pushing");
                last = entry;
                now = time;
                let mut first = expected.first_entry().unwrap();
                assert_eq!(*first.key(), time);
                *first.get_mut() -= 1;
                if *first.get() == 0 {
                    first.remove();
                }
            }
        }
        assert!(expected.len() > 100);
    }
}
