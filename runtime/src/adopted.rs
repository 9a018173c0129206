//! Memory that the program brings along, under a name.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use windlass_kernels::Element;
use windlass_memory::adopted::Adoption;

use crate::communicator::Communicator;
use crate::error::{Error, Failed, Problem};
use crate::fork;
use crate::memory::{Memory, MemoryMut, Span};

/// Memory of the program's own that is registered: see [`Communicator::register`]. It is not any more when this is dropped.
#[derive(Debug)]
pub struct Registration {
    adoption: ManuallyDrop<Adoption>,
}

impl Registration {
    /// The number of the region, which no other one of this rank's job has.
    pub fn region(&self) -> u32 {
        self.adoption.region().number()
    }

    /// The bytes that are registered.
    pub fn bytes(&self) -> usize {
        self.adoption.region().bytes()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if !fork::is_forked() {
            // SAFETY: dropped once, here; not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.adoption) };
        }
    }
}

/// A vector that is registered as long as it is in here: see [`Communicator::adopt`]. A slice to its owner.
pub struct Adopted<T: Element> {
    // The fields are dropped in this order: the name goes before the memory.
    registration: Registration,
    memory: Vec<T>,
}

impl<T: Element> Adopted<T> {
    /// The number of the region, which no other one of this rank's job has.
    pub fn region(&self) -> u32 {
        self.registration.region()
    }

    /// The vector, which is registered no more.
    pub fn into_vec(self) -> Vec<T> {
        self.memory
    }
}

impl<T: Element> Deref for Adopted<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.memory
    }
}

impl<T: Element> DerefMut for Adopted<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory
    }
}

impl<T: Element> fmt::Debug for Adopted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adopted").field("region", &self.region()).field("count", &self.memory.len()).finish()
    }
}

// SAFETY: a vector's elements stay in place while it is moved, and it owns them alone; it is not touched as a vector, which could move them, until
// `into_vec` takes it out.
unsafe impl<T: Element> Memory for Adopted<T> {
    type Element = T;
    fn span(&mut self) -> Span {
        Span::new(self.memory.as_mut_ptr(), self.memory.len())
    }
}
// SAFETY: as above.
unsafe impl<T: Element> MemoryMut for Adopted<T> {}

impl Communicator {
    /// Registers a vector where it lies, for all communicators of this rank's job. It is heap memory still: peers on this host do not
    /// map it, so there it is staged, as a plain vector is, and [`alloc`](Self::alloc) is faster; TCP sends from it and receives into it directly, as with any
    /// memory. What the registration is for is a network card, which is told of the memory once and not for every operation.
    ///
    /// # Errors
    /// `InvalidArgument`, with the vector, when some of it is registered already.
    ///
    /// ```
    /// let sums = windlass::threads(2, |comm| {
    ///     let mut weights = comm.adopt(vec![1.0f32; 100])?;
    ///     weights[99] = 2.0;
    ///     let weights = comm.all_reduce(weights, windlass::ReduceOp::Sum).wait()?;
    ///     Ok::<_, windlass::Error>(weights.into_vec()[99])
    /// });
    /// assert_eq!(sums.unwrap(), [Ok(4.0), Ok(4.0)]);
    /// ```
    pub fn adopt<T: Element>(&self, mut memory: Vec<T>) -> Result<Adopted<T>, Failed<Vec<T>>> {
        let (base, bytes) = (memory.as_mut_ptr(), size_of_val(memory.as_slice()));
        match self.register_range("adopt", base.cast(), bytes) {
            Ok(registration) => Ok(Adopted { registration, memory }),
            Err(error) => Err(Failed { error, memory }),
        }
    }

    /// Registers `bytes` bytes of the program's own at `base`, until what this returns is dropped: as [`adopt`](Self::adopt), for memory that somebody
    /// else owns.
    ///
    /// # Errors
    /// `InvalidArgument` when `base` is null, some of the bytes are registered already, or they are memory of windlass.
    ///
    /// # Safety
    /// The bytes stay mapped as they are until the registration is dropped, and it is not dropped while an operation uses them.
    pub unsafe fn register(&self, base: *mut u8, bytes: usize) -> Result<Registration, Error> {
        self.register_range("register", base, bytes)
    }

    fn register_range(
        &self,
        operation: &'static str,
        base: *mut u8,
        bytes: usize,
    ) -> Result<Registration, Error> {
        self.group().usable(operation)?;
        let job = &self.group().job;
        let wrong = |problem| Error::InvalidArgument { operation, argument: "the memory", problem };
        let Some(address) = NonNull::new(base) else {
            return Err(wrong(Problem::Misaligned { address: 0, alignment: 1 }));
        };
        if crate::device::address::decode(base).is_some() {
            return Err(wrong(Problem::OnDevice));
        }
        if job.pool.overlaps(base, bytes) {
            return Err(wrong(Problem::Shared));
        }
        let adopted = job.adopted.adopt(address, bytes);
        let adoption = adopted.map_err(|refused| wrong(Problem::NotAdopted(refused)))?;
        Ok(Registration { adoption: ManuallyDrop::new(adoption) })
    }
}
