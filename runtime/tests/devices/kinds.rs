//! Every kind of call on device memory, beside every other kind of memory.

use std::time::Duration;

use windlass::accelerator::simulated::{Options, SimulatedAccelerator};
use windlass::{
    Communicator, Device, DeviceBuffer, Element, Error, Failed, ReduceOp, bf16, f16, threads_with,
};

use super::{accelerator, check, fill, shm, sum, value};

fn attached(comm: &Communicator) -> (std::sync::Arc<SimulatedAccelerator>, Device) {
    let accelerator = accelerator(comm.rank(), Options::default());
    let device = comm.attach(accelerator.clone()).unwrap();
    (accelerator, device)
}

/// The same operands on the device and on the host: the same bits.
fn as_on_the_host<T: Element + std::fmt::Debug>(
    comm: &Communicator,
    device: &Device,
    value: impl Fn(usize) -> T,
) {
    const COUNT: usize = 20_011;
    let bits = |values: &[T]| {
        // SAFETY: elements are plain data.
        unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) }.to_vec()
    };
    for op in [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Min, ReduceOp::Max, ReduceOp::Avg] {
        let values: Vec<T> = (0..COUNT).map(&value).collect();
        let mut host = comm.alloc::<T>(COUNT).unwrap();
        host.copy_from_slice(&values);
        let on_host = comm.all_reduce(host, op).wait();
        let mut buffer = device.alloc::<T>(COUNT).unwrap();
        buffer.write(&values).unwrap();
        let on_device = comm.all_reduce(buffer, op).wait();
        match (on_host, on_device) {
            (Ok(host), Ok(device)) => {
                let mut result = values;
                device.read(&mut result).unwrap();
                assert!(bits(&host) == bits(&result), "{:?} {op:?}", T::DATA_TYPE);
            }
            // An average of integers is none, on either side.
            (Err(Failed { error: Error::InvalidArgument { .. }, .. }), Err(failed)) => {
                assert!(matches!(failed.error, Error::InvalidArgument { .. }), "{}", failed.error);
            }
            (host, device) => panic!("{:?} {op:?}: {host:?}, {device:?}", T::DATA_TYPE),
        }
    }
}

#[test]
fn every_operator_gives_the_bits_that_the_host_gives() {
    threads_with(3, &shm(), |comm| {
        let (accelerator, device) = attached(&comm);
        let rank = comm.rank();
        let number = move |i: usize| value(rank, 3, i) / 256.0 - 1.5;
        as_on_the_host::<f32>(&comm, &device, number);
        as_on_the_host::<f16>(&comm, &device, |i| f16::from_f32(number(i)));
        as_on_the_host::<bf16>(&comm, &device, |i| bf16::from_f32(number(i)));
        as_on_the_host::<i64>(&comm, &device, |i| {
            i64::MAX / 3 - (i as i64) * (1 << 40) * i64::from(rank + 1)
        });
        as_on_the_host::<u8>(&comm, &device, |i| (i as u8).wrapping_mul(31).wrapping_add(rank as u8));
        assert_eq!(accelerator.audit(), []);
    })
    .unwrap();
}

#[test]
fn other_collectives_take_device_memory_of_every_length() {
    const RANKS: u32 = 3;
    threads_with(RANKS, &shm(), |comm| {
        let (accelerator, device) = attached(&comm);
        let rank = comm.rank();
        for count in [0, 1, 2, 5, 1000, 40_000] {
            let all = count * RANKS as usize;
            // Scatter.
            for output_on_device in [true, false] {
                let mut input = device.alloc::<f32>(all).unwrap();
                fill(&mut input, rank, 1);
                let mut values = vec![0.0; count];
                if output_on_device {
                    let output = device.alloc::<f32>(count).unwrap();
                    let (_, output) = comm.reduce_scatter_into(input, output, ReduceOp::Sum).wait().unwrap();
                    output.read(&mut values).unwrap();
                } else {
                    (_, values) = comm.reduce_scatter_into(input, values, ReduceOp::Sum).wait().unwrap();
                }
                for (i, is) in values.into_iter().enumerate() {
                    assert_eq!(is, sum(RANKS, 1, rank as usize * count + i));
                }
            }
            // Gather.
            let mut input = device.alloc::<f32>(count).unwrap();
            fill(&mut input, rank, 2);
            let output = device.alloc::<f32>(all).unwrap();
            let (_, output) = comm.all_gather_into(input, output).wait().unwrap();
            let mut values = vec![0.0; all];
            output.read(&mut values).unwrap();
            for (i, is) in values.into_iter().enumerate() {
                assert_eq!(is, value((i / count) as u32, 2, i % count));
            }
            // Broadcast, from every root.
            for root in 0..RANKS {
                let mut buffer = device.alloc::<f32>(count).unwrap();
                fill(&mut buffer, rank, 3);
                let buffer = comm.broadcast(buffer, root).wait().unwrap();
                let mut values = vec![0.0; count];
                buffer.read(&mut values).unwrap();
                assert!(values.iter().enumerate().all(|(i, &is)| is == value(root, 3, i)));
            }
        }
        assert_eq!(accelerator.audit(), []);
    })
    .unwrap();
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Device,
    Registered,
    Heap,
}

const KINDS: [Kind; 3] = [Kind::Device, Kind::Registered, Kind::Heap];

/// One rank's memory, of any kind.
#[derive(Debug)]
enum Any {
    Device(DeviceBuffer<f32>),
    Registered(windlass::Buffer<f32>),
    Heap(Vec<f32>),
}

impl Any {
    fn new(kind: Kind, comm: &Communicator, device: &Device, values: &[f32]) -> Self {
        match kind {
            Kind::Device => {
                let mut buffer = device.alloc(values.len()).unwrap();
                buffer.write(values).unwrap();
                Self::Device(buffer)
            }
            Kind::Registered => {
                let mut buffer = comm.alloc(values.len()).unwrap();
                buffer.copy_from_slice(values);
                Self::Registered(buffer)
            }
            Kind::Heap => Self::Heap(values.to_vec()),
        }
    }

    fn values(&self) -> Vec<f32> {
        match self {
            Self::Device(buffer) => {
                let mut values = vec![0.0; buffer.len()];
                buffer.read(&mut values).unwrap();
                values
            }
            Self::Registered(buffer) => buffer.to_vec(),
            Self::Heap(values) => values.clone(),
        }
    }
}

// SAFETY: it is one of three kinds of memory, each of which keeps the promise.
unsafe impl windlass::Memory for Any {
    type Element = f32;
    fn span(&mut self) -> windlass::Span {
        match self {
            Self::Device(buffer) => buffer.span(),
            Self::Registered(buffer) => buffer.span(),
            Self::Heap(values) => values.span(),
        }
    }
}
// SAFETY: as above.
unsafe impl windlass::MemoryMut for Any {}

#[test]
fn every_mixture_of_memory_gives_the_same_while_it_moves() {
    threads_with(3, &shm(), |comm| {
        let options = Options { moves_per_second: 100.0, ..Options::default() };
        let accelerator = accelerator(comm.rank(), options);
        let device = comm.attach(accelerator.clone()).unwrap();
        let rank = comm.rank() as usize;
        for count in [3, 100, 30_000] {
            for mixture in 0..27usize {
                let kind = KINDS[mixture / 3usize.pow(rank as u32) % 3];
                // What this rank gives and where its result goes are of different kinds every second time.
                let other = KINDS[(mixture / 3usize.pow(rank as u32) + mixture) % 3];
                let values: Vec<f32> = (0..count).map(|i| value(rank as u32, mixture as u32, i)).collect();
                let memory = Any::new(kind, &comm, &device, &values);
                let memory = comm.all_reduce(memory, ReduceOp::Sum).wait().unwrap();
                let input = Any::new(kind, &comm, &device, &values);
                let output = Any::new(other, &comm, &device, &vec![0.0; count]);
                let (input, output) = comm.all_reduce_into(input, output, ReduceOp::Sum).wait().unwrap();
                assert_eq!(input.values(), values, "{kind:?} {other:?}");
                let sums: Vec<f32> = (0..count).map(|i| sum(3, mixture as u32, i)).collect();
                assert!(memory.values() == sums, "{mixture}: {kind:?} in place");
                assert!(output.values() == sums, "{mixture}: {kind:?} into {other:?}");
            }
        }
        assert_eq!(accelerator.audit(), []);
    })
    .unwrap();
}

#[test]
fn many_communicators_share_a_device_while_their_buffers_move() {
    const COUNT: usize = 60_000;
    threads_with(4, &shm(), |comm| {
        let accelerator = accelerator(comm.rank(), Options::default());
        let device = comm.attach(accelerator.clone()).unwrap();
        let mut others: Vec<Communicator> = (0..3).map(|_| comm.duplicate().unwrap()).collect();
        for by in [1, 2] {
            others.push(comm.split(Some(comm.rank() / by % 2), 0).unwrap().unwrap());
        }
        for round in 0..4 {
            let started: Vec<_> = others
                .iter()
                .map(|other| {
                    let mut buffer = device.alloc::<f32>(COUNT).unwrap();
                    fill(&mut buffer, other.rank(), round);
                    let region = buffer.region();
                    (other, region, other.all_reduce(buffer, ReduceOp::Sum))
                })
                .collect();
            for (_, region, _) in &started {
                let _ = accelerator.move_now(*region);
                std::thread::sleep(Duration::from_micros(300));
            }
            for (other, _, operation) in started {
                check(&operation.wait().unwrap(), other.size(), round);
            }
        }
        assert_eq!(accelerator.audit(), []);
    })
    .unwrap();
}
