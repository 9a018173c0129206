//! Random walks of two devices against a model that knows what every byte must be.
//!
//! The model follows the rules: it drains before it acknowledges, touches only what is active, and forgets what stale work was to
//! store. Then every byte must be right and no audit may find anything. With a liar in it, the audit must.

use std::collections::BTreeMap;

use super::*;

/// Splitmix64, so that a seed is a walk.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % end as u64) as usize
    }
}

struct Flight {
    fence: Fence,
    from: Region,
    from_at: usize,
    to: Region,
    to_at: usize,
    count: usize,
}

struct Walk {
    /// The owner of all regions that are modelled, and one that works on them by import.
    devices: [Device; 2],
    random: Random,
    /// `None` is a byte that nothing is known of.
    model: BTreeMap<Region, Vec<Option<u8>>>,
    imports: BTreeMap<Region, (u32, Import)>,
    flights: Vec<Flight>,
    checked: usize,
    stale: usize,
}

impl Walk {
    fn new(movement: Movement, seed: u64) -> Self {
        let options = Options {
            movement,
            seed,
            capacity_bytes: 160 << 10,
            announce_ahead: seed % 2 == 1,
            move_time: TICK * (seed % 3) as u32,
            reorder: seed % 4 > 1,
            fence_delay: Duration::ZERO..=TICK,
            chunk_bytes: 700,
            moves_per_second: 40.0,
            revokes_per_second: if movement == Movement::Revocable { 20.0 } else { 2.0 },
            lost_share: 0.2,
            patience: 20 * TICK,
            keep: 200 * TICK,
            ..Options::default()
        };
        let peer = Options {
            capacity_bytes: 1 << 20,
            moves_per_second: 0.0,
            revokes_per_second: 0.0,
            ..options.clone()
        };
        Self {
            devices: [Device::new(options), Device::new(Options { device: 2, ..peer })],
            random: Random(seed),
            model: BTreeMap::new(),
            imports: BTreeMap::new(),
            flights: Vec::new(),
            checked: 0,
            stale: 0,
        }
    }

    fn some_region(&mut self) -> Option<Region> {
        let index = self.random.below(self.model.len().max(1));
        self.model.keys().nth(index).copied()
    }

    fn is_busy(&self, region: Region, at: usize, count: usize, writes: bool) -> bool {
        let hits =
            |of: Region, begin: usize, length| of == region && at < begin + length && begin < at + count;
        let flight = |f: &Flight| hits(f.to, f.to_at, f.count) || writes && hits(f.from, f.from_at, f.count);
        self.flights.iter().any(flight)
    }

    fn forget(&mut self, region: Region, at: usize, count: usize) {
        if let Some(bytes) = self.model.get_mut(&region) {
            bytes[at..at + count].fill(None);
        }
    }

    /// Finished work goes into the model.
    fn land(&mut self) {
        for flight in std::mem::take(&mut self.flights) {
            match flight.fence.outcome() {
                None => self.flights.push(flight),
                Some(Ok(())) => {
                    let from =
                        self.model.get(&flight.from).map(|b| b[flight.from_at..][..flight.count].to_vec());
                    if let (Some(from), Some(to)) = (from, self.model.get_mut(&flight.to)) {
                        to[flight.to_at..][..flight.count].copy_from_slice(&from);
                    }
                }
                Some(Err(AcceleratorError::Stale { .. })) => {
                    self.stale += 1;
                    self.forget(flight.to, flight.to_at, flight.count);
                }
                Some(Err(other)) => panic!("{other}"),
            }
        }
    }

    fn drain(&mut self, region: Region) {
        for _ in 0..10_000 {
            self.land();
            if !self.flights.iter().any(|f| f.from == region || f.to == region) {
                return;
            }
            self.devices[1].advance(TICK);
            self.devices[0].advance(Duration::ZERO);
            self.devices[0].now.set(self.devices[0].now.get() + TICK / 10);
        }
        panic!("work on {region} does not end");
    }

    fn hear(&mut self) {
        for notice in self.devices[0].notices() {
            match notice {
                Notice::MoveAsked { region, ticket, .. } => {
                    if self.random.below(5) == 0 {
                        // Perhaps too late already, as any answer may be.
                        let _ = self.devices[0].accelerator.refuse(ticket);
                        continue;
                    }
                    self.drain(region);
                    if self.devices[0].accelerator.movement() == Movement::Pinned {
                        self.release(region);
                    }
                    let _ = self.devices[0].accelerator.acknowledge(ticket);
                }
                Notice::Replaced { region, contents: Contents::Lost, .. } => {
                    let whole = self.model.get(&region).map_or(0, Vec::len);
                    self.forget(region, 0, whole);
                }
                _ => {}
            }
        }
        assert!(!self.devices[0].notices.overflowed());
    }

    fn release(&mut self, region: Region) {
        if let Some((_, import)) = self.imports.remove(&region) {
            self.devices[1].accelerator.release(import).unwrap();
        }
    }

    /// By which device, and how, work reaches a region now.
    fn reach(&mut self, by: usize, region: Region) -> Option<Place> {
        let generation = self.devices[0].generation(region);
        if by == 0 {
            return Some(Place::Own(region, generation));
        }
        if self.imports.get(&region).is_none_or(|(known, _)| *known != generation) {
            self.release(region);
            let export = self.devices[0].export(region, generation).ok()?;
            let import = self.devices[1].import(&export).ok()?;
            self.imports.insert(region, (generation, import));
        }
        self.imports.get(&region).map(|(_, import)| Place::Imported(*import))
    }

    fn operate(&mut self) -> Option<()> {
        match self.random.below(20) {
            0 if self.model.len() < 12 => {
                let bytes = self.random.below(30_000);
                let region = self.devices[0].accelerator.allocate(bytes as u64).ok()?;
                self.model.insert(region, vec![None; bytes]);
            }
            1 if self.random.below(4) == 0 => {
                let region = self.some_region()?;
                self.drain(region);
                self.release(region);
                self.devices[0].accelerator.free(region).unwrap();
                self.model.remove(&region);
            }
            2..8 => {
                let region = self.some_region()?;
                let length = self.model[&region].len();
                let at = self.random.below(length + 1);
                let count = self.random.below(length - at + 1).min(3000);
                let place = self.reach(0, region)?;
                if self.is_busy(region, at, count, true) {
                    return None;
                }
                let bytes = pattern(count, self.random.below(256) as u8);
                let operand = Operand { place, offset: at as u64 };
                self.devices[0].accelerator.write(operand, &bytes).ok()?;
                let model = self.model.get_mut(&region)?;
                model[at..at + count].iter_mut().zip(bytes).for_each(|(known, byte)| *known = Some(byte));
            }
            8..14 => self.fly()?,
            14..17 => {
                let region = self.some_region()?;
                self.check(region)?;
            }
            _ => {
                let time = TICK * self.random.below(4) as u32;
                let both = self.random.below(3);
                for (i, device) in self.devices.iter().enumerate() {
                    device.now.set(device.now.get() + time);
                    if both == 0 || both == i + 1 {
                        device.step();
                    }
                }
            }
        }
        Some(())
    }

    /// A copy between regions, by either device.
    fn fly(&mut self) -> Option<()> {
        let by = self.random.below(2);
        let (from, to) = (self.some_region()?, self.some_region()?);
        let (from_length, to_length) = (self.model[&from].len(), self.model[&to].len());
        let count = self.random.below(from_length.min(to_length) + 1);
        let (from_at, to_at) =
            (self.random.below(from_length - count + 1), self.random.below(to_length - count + 1));
        let mixed = from == to && from_at != to_at && from_at.abs_diff(to_at) < count;
        if self.is_busy(from, from_at, count, false) || self.is_busy(to, to_at, count, true) {
            return None;
        }
        let (source, target) = (self.reach(by, from)?, self.reach(by, to)?);
        let (source, target) = (
            Operand { place: source, offset: from_at as u64 },
            Operand { place: target, offset: to_at as u64 },
        );
        match self.devices[by].try_copy(source, target, count as u64) {
            Err(AcceleratorError::Overlap { output: 0 }) => assert!(mixed),
            Ok(fence) => {
                assert!(!mixed || fence.is_done());
                self.flights.push(Flight { fence, from, from_at, to, to_at, count });
            }
            Err(other) => panic!("{other}"),
        }
        Some(())
    }

    fn check(&mut self, region: Region) -> Option<()> {
        let length = self.model[&region].len();
        if self.is_busy(region, 0, length, false) {
            return None;
        }
        let mut bytes = vec![0; length];
        let place = self.reach(0, region)?;
        self.devices[0].accelerator.read(Operand { place, offset: 0 }, &mut bytes).ok()?;
        self.hear();
        for (i, (known, byte)) in self.model[&region].iter().zip(bytes).enumerate() {
            assert!(known.is_none_or(|known| known == byte), "byte {i} of {region}");
            self.checked += usize::from(known.is_some());
        }
        Some(())
    }

    fn run(&mut self, operations: usize) {
        for _ in 0..operations {
            let _ = self.operate();
            self.land();
            self.hear();
        }
        for region in self.model.keys().copied().collect::<Vec<_>>() {
            self.drain(region);
        }
        self.devices.iter().for_each(|device| device.advance(300 * TICK));
        for region in self.model.keys().copied().collect::<Vec<_>>() {
            self.hear();
            self.check(region);
        }
    }
}

fn walks(movement: Movement, operations: usize) {
    let (mut checked, mut stale, mut moved) = (0, 0, 0);
    for seed in 0..12 {
        let mut walk = Walk::new(movement, seed);
        walk.run(operations);
        let [owner, peer] = &walk.devices;
        assert_eq!(owner.accelerator.audit(), [], "seed {seed}");
        assert_eq!(peer.accelerator.audit(), [], "seed {seed}");
        let counters = owner.accelerator.counters();
        assert_eq!((counters.breaches, counters.unchecked), (0, 0), "seed {seed}");
        moved += counters.moves + counters.revokes;
        (checked, stale) = (checked + walk.checked, stale + walk.stale);
    }
    assert!(checked > 100_000 && moved > 100 && stale > 0, "{checked} bytes, {moved} moves, {stale} stale");
}

#[test]
fn cooperative() {
    walks(Movement::Cooperative, 4000);
}

#[test]
fn pinned() {
    walks(Movement::Pinned, 4000);
}

#[test]
fn revocable() {
    walks(Movement::Revocable, 4000);
}

#[test]
fn transparent() {
    walks(Movement::Transparent, 4000);
}

/// The model forgets one rule: it acknowledges while work runs.
#[test]
fn canary_a_walk_that_does_not_drain() {
    let found = (0..12).any(|seed| {
        let mut walk = Walk::new(Movement::Cooperative, seed);
        for _ in 0..4000 {
            let _ = walk.operate();
            walk.land();
            for notice in walk.devices[0].notices() {
                match notice {
                    Notice::MoveAsked { ticket, .. } => {
                        let _ = walk.devices[0].accelerator.acknowledge(ticket);
                    }
                    Notice::Replaced { region, contents: Contents::Lost, .. } => {
                        let whole = walk.model.get(&region).map_or(0, Vec::len);
                        walk.forget(region, 0, whole);
                    }
                    _ => {}
                }
            }
        }
        walk.devices[0].accelerator.counters().breaches > 0
    });
    assert!(found, "nobody noticed");
}
