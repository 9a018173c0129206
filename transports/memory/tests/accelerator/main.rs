//! Accelerators that windlass drives: what they promise to those who keep the rules, and how they find those who do not.
//!
//! The subject is the simulated one, or the one of the kernel's that `WINDLASS_TEST_ACCELERATOR` names (`tools/test-testbed` does so inside the testbed). What a test
//! wants of the simulated one alone (its address space, its audit, its announcements) it does not ask of another, and says so.
#![expect(clippy::unwrap_used, reason = "a test's scaffolding panics as its tests do")]

mod all_reduce;
mod descriptors;
mod kernel;
mod liars;
mod pressure;
mod processes;
mod subject;
mod thread;
mod transitions;
mod walk;
mod work;

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use subject::{Subject, not_simulated};
use windlass_kernels::{Combine, DataType, ReduceOp};
use windlass_memory::accelerator::simulated::SimulatedAccelerator;
use windlass_memory::accelerator::{
    Accelerator, AcceleratorError, Contents, DeviceRange, Drive, Export, Fence, Import, Movement, Notice,
    Notices, Operand, Options, Outcome, Place, Region, Ticket, Work,
};

const TICK: Duration = Duration::from_millis(1);

/// A stepped device with a reader of its notices.
struct Device {
    accelerator: Subject,
    notices: Arc<Notices>,
    now: Cell<Duration>,
}

impl Device {
    fn new(options: Options) -> Self {
        let accelerator = Subject::new(Options { drive: Drive::Stepped, ..options });
        let notices = Arc::new(Notices::new(64, || {}));
        accelerator.listen(Arc::clone(&notices));
        Self { accelerator, notices, now: Cell::new(Duration::ZERO) }
    }

    fn moving(movement: Movement) -> Self {
        Self::new(Options { movement, ..Options::default() })
    }

    /// One step, at the same time.
    fn step(&self) -> bool {
        self.accelerator.step(self.now.get()).at_once
    }

    /// Lets time pass, and does all that can be done.
    fn advance(&self, time: Duration) {
        self.now.set(self.now.get() + time);
        while self.step() {}
    }

    fn region(&self, bytes: &[u8]) -> Region {
        let region = self.accelerator.allocate(bytes.len() as u64).unwrap();
        self.accelerator.write(self.own(region, 0), bytes).unwrap();
        region
    }

    fn generation(&self, region: Region) -> u32 {
        self.accelerator.status(region).unwrap().generation
    }

    /// Byte `offset` of a region at its present generation.
    fn own(&self, region: Region, offset: u64) -> Operand {
        Operand { place: Place::Own(region, self.generation(region)), offset }
    }

    fn bytes(&self, region: Region) -> Vec<u8> {
        let mut bytes = vec![0; self.accelerator.status(region).unwrap().bytes as usize];
        self.accelerator.read(self.own(region, 0), &mut bytes).unwrap();
        bytes
    }

    /// All of a region, at a generation.
    fn export(&self, region: Region, generation: u32) -> Result<Export, AcceleratorError> {
        let bytes = self.accelerator.status(region)?.bytes;
        self.accelerator.export(DeviceRange { region, generation, offset: 0, bytes })
    }

    fn import_from(&self, owner: &Self, region: Region) -> Import {
        let export = owner.export(region, owner.generation(region)).unwrap();
        self.import(&export).unwrap()
    }

    fn import(&self, export: &Export) -> Result<Import, AcceleratorError> {
        use std::os::fd::AsFd;
        self.accelerator.import(export.descriptor.as_fd(), &export.exported)
    }

    fn copy(&self, from: Operand, to: Operand, bytes: u64) -> Fence {
        self.try_copy(from, to, bytes).unwrap()
    }

    fn try_copy(&self, from: Operand, to: Operand, bytes: u64) -> Result<Fence, AcceleratorError> {
        let combine = Combine::copy(DataType::U8);
        let (inputs, outputs) = (&[from], &[to]);
        self.accelerator.submit(&Work { combine, divisor: 1, count: bytes, inputs, outputs, after: None })
    }

    /// Adds two vectors of i32.
    fn add(&self, inputs: &[Operand], output: Operand, count: u64) -> Fence {
        let combine = Combine::reduce(DataType::I32, ReduceOp::Sum);
        let work = Work { combine, divisor: 1, count, inputs, outputs: &[output], after: None };
        self.accelerator.submit(&work).unwrap()
    }

    /// Steps until a fence is done.
    fn outcome(&self, fence: &Fence) -> Outcome {
        for _ in 0..10_000 {
            if let Some(outcome) = fence.outcome() {
                return outcome.clone();
            }
            self.advance(TICK);
        }
        panic!("the work does not end");
    }

    fn notices(&self) -> Vec<Notice> {
        std::iter::from_fn(|| self.notices.pop()).collect()
    }

    /// The ticket of a question that must be there.
    fn asked(&self, of: Region) -> Ticket {
        let notices = self.notices();
        let ticket = notices.iter().find_map(|notice| match notice {
            Notice::MoveAsked { region, ticket, .. } if *region == of => Some(*ticket),
            _ => None,
        });
        ticket.unwrap_or_else(|| panic!("nobody asked for {of}: {notices:?}"))
    }
}

fn imported(import: Import, offset: u64) -> Operand {
    Operand { place: Place::Imported(import), offset }
}

fn pattern(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// An object of the trait is what the runtime holds.
#[test]
fn it_is_an_object() {
    let object: Arc<dyn Accelerator> = Arc::new(SimulatedAccelerator::new(Options::default()));
    assert_eq!(object.movement(), Movement::Cooperative);
}
