//! A simulated accelerator that does not always do what it is asked.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use windlass::accelerator::simulated::SimulatedAccelerator;
use windlass::accelerator::{
    Accelerator, AcceleratorError, Contents, DeviceRange, Export, Exported, Fence, Import, Movement, Notice,
    Notices, Operand, Region, Status, Ticket, Work,
};

/// What happens in the middle of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Prank {
    /// While a move is acknowledged, another one of the same region is asked for.
    AskInAcknowledgement,
    /// While a move is acknowledged, the region is revoked.
    RevokeInAcknowledgement,
    /// Memory is revoked as soon as it is allocated, before anybody knows it.
    RevokeAtAllocation(Contents),
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Wayward {
    pub(crate) inner: Arc<SimulatedAccelerator>,
    pub(crate) export: Mutex<Option<AcceleratorError>>,
    pub(crate) import: Mutex<Option<AcceleratorError>>,
    pub(crate) prank: Option<Prank>,
    /// Who holds it keeps everybody from telling the time, and so from reading notices.
    pub(crate) clock: Mutex<()>,
    /// How late its engine begins with what it is given.
    pub(crate) late: Mutex<Duration>,
    /// What its engine has been given late and has not ended: now, and at most so far.
    pub(crate) queued: Arc<AtomicUsize>,
    pub(crate) most_queued: AtomicUsize,
    pub(crate) notices: Mutex<Option<Arc<Notices>>>,
    pub(crate) tickets: AtomicU64,
}

impl Wayward {
    pub(crate) fn new(inner: Arc<SimulatedAccelerator>) -> Self {
        Self {
            inner,
            export: Mutex::default(),
            import: Mutex::default(),
            prank: None,
            clock: Mutex::default(),
            late: Mutex::default(),
            queued: Arc::default(),
            most_queued: AtomicUsize::new(0),
            notices: Mutex::default(),
            tickets: AtomicU64::new(1 << 40),
        }
    }
}

fn refused(by: &Mutex<Option<AcceleratorError>>) -> Result<(), AcceleratorError> {
    by.lock().unwrap().clone().map_or(Ok(()), Err)
}

impl Accelerator for Wayward {
    fn movement(&self) -> Movement {
        self.inner.movement()
    }

    fn now(&self) -> Duration {
        let _clock = self.clock.lock().unwrap();
        self.inner.now()
    }

    fn listen(&self, notices: Arc<Notices>) {
        *self.notices.lock().unwrap() = Some(Arc::clone(&notices));
        self.inner.listen(notices);
    }

    fn allocate(&self, bytes: u64) -> Result<Region, AcceleratorError> {
        let region = self.inner.allocate(bytes)?;
        if let Some(Prank::RevokeAtAllocation(contents)) = self.prank {
            self.inner.revoke_now(region, contents)?;
        }
        Ok(region)
    }

    fn free(&self, region: Region) -> Result<(), AcceleratorError> {
        self.inner.free(region)
    }

    fn status(&self, region: Region) -> Result<Status, AcceleratorError> {
        self.inner.status(region)
    }

    fn export(&self, range: DeviceRange) -> Result<Export, AcceleratorError> {
        refused(&self.export)?;
        self.inner.export(range)
    }

    fn import(&self, descriptor: BorrowedFd<'_>, exported: &Exported) -> Result<Import, AcceleratorError> {
        refused(&self.import)?;
        self.inner.import(descriptor, exported)
    }

    fn release(&self, import: Import) -> Result<(), AcceleratorError> {
        self.inner.release(import)
    }

    fn acknowledge(&self, ticket: Ticket) -> Result<(), AcceleratorError> {
        let asked = |region: &Region| {
            let condition = self.inner.status(*region).map(|status| status.condition);
            matches!(condition, Ok(windlass::accelerator::Condition::MoveAsked { ticket: t, .. }) if t == ticket)
        };
        // Regions are numbered from 1 on.
        let device = self.inner.allocate(1)?;
        self.inner.free(device)?;
        let mut regions = (1..device.number()).map(|number| Region::new(device.device(), number));
        let region = regions.find(asked);
        match (self.prank, region, &*self.notices.lock().unwrap()) {
            (Some(Prank::AskInAcknowledgement), Some(region), Some(notices)) => {
                let ticket = Ticket::new(self.tickets.fetch_add(1, Ordering::Relaxed));
                let generation = self.inner.status(region)?.generation;
                let asked = self.now();
                let deadline = asked + Duration::from_secs(1);
                notices.push(Notice::MoveAsked { region, generation, ticket, asked, deadline });
            }
            (Some(Prank::RevokeInAcknowledgement), Some(region), _) => {
                self.inner.revoke_now(region, Contents::Preserved)?;
            }
            _ => {}
        }
        self.inner.acknowledge(ticket)
    }

    fn refuse(&self, ticket: Ticket) -> Result<(), AcceleratorError> {
        self.inner.refuse(ticket)
    }

    fn submit(&self, work: &Work<'_>) -> Result<Fence, AcceleratorError> {
        let late = *self.late.lock().unwrap();
        if late.is_zero() {
            return self.inner.submit(work);
        }
        let fence = Fence::new();
        let (combine, divisor, count) = (work.combine, work.divisor, work.count);
        let (inputs, outputs) = (work.inputs.to_vec(), work.outputs.to_vec());
        let (inner, ended) = (Arc::clone(&self.inner), fence.clone());
        let queued = Arc::clone(&self.queued);
        self.most_queued.fetch_max(queued.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::spawn(move || {
            std::thread::sleep(late);
            let work = Work { combine, divisor, count, inputs: &inputs, outputs: &outputs, after: None };
            let outcome = inner.submit(&work).and_then(|fence| {
                loop {
                    match fence.outcome() {
                        Some(outcome) => return outcome.clone(),
                        None => std::thread::sleep(Duration::from_micros(100)),
                    }
                }
            });
            queued.fetch_sub(1, Ordering::SeqCst);
            ended.signal(outcome);
        });
        Ok(fence)
    }

    fn read(&self, from: Operand, to: &mut [u8]) -> Result<(), AcceleratorError> {
        self.inner.read(from, to)
    }

    fn write(&self, to: Operand, from: &[u8]) -> Result<(), AcceleratorError> {
        self.inner.write(to, from)
    }
}
