//! Addresses of device memory, as C and Python hold them: what is wrong with one is found out before anything starts.

use std::ops::Range;

use windlass::accelerator::simulated::Options;
use windlass::{
    Collective, Communicator, DataType, DeviceBuffer, Error, List, Piece, Problem, RawRequest, ReduceOp,
    threads_with,
};

use super::{accelerator, fill, rounds, shm, sum, value};

const COUNT: usize = 1000;

fn all_reduce(memory: *mut u8, count: usize) -> RawRequest {
    let request = RawRequest::new(Collective::AllReduce, DataType::F32, count);
    RawRequest { input: memory, output: memory, ..request }
}

fn refused(comm: &Communicator, request: &RawRequest) -> Problem {
    // SAFETY: what is found wrong is not touched, and nothing lies at addresses of device memory.
    let now = unsafe { comm.blocking().perform(request) }.unwrap_err();
    // SAFETY: as above.
    let later = unsafe { comm.post(request, ()) }.wait().unwrap_err().error;
    assert_eq!(now, later);
    match now {
        Error::InvalidArgument { problem, .. } => problem,
        other => panic!("{other}"),
    }
}

#[test]
fn a_wrong_address_is_refused_and_the_communicator_goes_on() {
    threads_with(2, &shm(), |comm| {
        let unattached = all_reduce(std::ptr::without_provenance_mut(0x40f << 52 | 7 << 36), COUNT);
        assert!(matches!(refused(&comm, &unattached), Problem::NoDeviceMemory { .. }));
        let device = comm.attach(accelerator(comm.rank(), Options::default())).unwrap();
        let mut buffer = device.alloc::<f32>(COUNT).unwrap();
        let address: *mut u8 = buffer.address().cast();

        // Another rank's, of the same process, is nobody's here.
        let mut addresses = [0u64; 2];
        comm.blocking().all_gather_into(&[address.addr() as u64], &mut addresses).unwrap();
        let theirs = addresses[1 - comm.rank() as usize] as usize;
        let none = Problem::NoDeviceMemory { address: theirs };
        assert_eq!(refused(&comm, &all_reduce(std::ptr::without_provenance_mut(theirs), COUNT)), none);

        let limit = 4 * COUNT as u64;
        let beyond = |offset, bytes| Problem::BeyondEnd { offset, bytes, limit };
        assert_eq!(refused(&comm, &all_reduce(address, COUNT + 1)), beyond(0, limit + 4));
        assert_eq!(refused(&comm, &all_reduce(address.wrapping_add(8), COUNT - 1)), beyond(8, limit - 4));
        let before = address.wrapping_sub(4096);
        assert!(matches!(
            refused(&comm, &all_reduce(before, 1)),
            Problem::NoDeviceMemory { .. } | Problem::BeyondEnd { .. }
        ));
        assert!(matches!(
            refused(&comm, &all_reduce(address.wrapping_add(2), 1)),
            Problem::Misaligned { .. }
        ));

        // In a message, on one side only, and as a member of a list.
        let message = RawRequest { root: 1 - comm.rank(), ..all_reduce(address, COUNT + 1) };
        let message = RawRequest { collective: Collective::Recv, ..message };
        assert_eq!(refused(&comm, &message), beyond(0, limit + 4));
        let mut host = vec![0.0f32; COUNT + 1];
        let mixed = RawRequest { input: host.as_mut_ptr().cast(), ..all_reduce(address, COUNT + 1) };
        assert_eq!(refused(&comm, &mixed), beyond(0, limit + 4));
        let pieces = [Piece { address, count: COUNT }, Piece { address: theirs as *mut u8, count: 1 }];
        let listed = RawRequest { input_pieces: &raw const pieces[..], ..mixed };
        let listed = RawRequest { output: host.as_mut_ptr().cast(), ..listed };
        assert_eq!(refused(&comm, &listed), none);

        // Of no elements anything will do.
        // SAFETY: as above.
        unsafe { comm.blocking().perform(&all_reduce(address.wrapping_add(4 * COUNT), 0)) }.unwrap();

        drop(buffer);
        let gone = Problem::NoDeviceMemory { address: address.addr() };
        assert_eq!(refused(&comm, &all_reduce(address, COUNT)), gone);
        assert!(gone.to_string().contains("it was freed"), "{gone}");
        // Neither does another one's memory lie there soon.
        let many: Vec<_> = (0..100).map(|_| device.alloc::<u8>(1).unwrap()).collect();
        assert_eq!(refused(&comm, &all_reduce(address, COUNT)), gone);
        drop(many);
        rounds(&comm, &device, COUNT, 1);
    })
    .unwrap();
}

/// What lies in part of a buffer.
fn part(buffer: &DeviceBuffer<f32>, range: Range<usize>) -> Vec<f32> {
    let mut values = vec![0.0; range.len()];
    buffer.read_at(range.start, &mut values).unwrap();
    values
}

#[test]
fn parts_of_a_buffer_are_written_reduced_and_read() {
    threads_with(2, &shm(), |comm| {
        let device = comm.attach(accelerator(comm.rank(), Options::default())).unwrap();
        let mut buffer = device.alloc::<f32>(COUNT).unwrap();
        buffer.write(&vec![-1.0; COUNT]).unwrap();
        let values: Vec<f32> = (0..100).map(|i| value(comm.rank(), 0, i)).collect();
        buffer.write_at(300, &values).unwrap();
        let address: *mut u8 = buffer.address().cast();
        // SAFETY: nothing lies at addresses of device memory, and the buffer lives.
        unsafe { comm.blocking().perform(&all_reduce(address.wrapping_add(4 * 300), 100)) }.unwrap();
        let sums: Vec<f32> = (0..100).map(|i| sum(2, 0, i)).collect();
        assert_eq!(part(&buffer, 300..400), sums);
        assert!(part(&buffer, 0..300).iter().chain(&part(&buffer, 400..COUNT)).all(|x| *x == -1.0));
        assert!(part(&buffer, COUNT..COUNT).is_empty());
        for (first, count) in [(0, COUNT + 1), (COUNT - 1, 2), (COUNT + 1, 0), (usize::MAX, 1)] {
            let mut values = vec![0.0; count];
            for error in [buffer.read_at(first, &mut values), buffer.write_at(first, &values)] {
                let beyond =
                    matches!(error, Err(Error::InvalidArgument { problem: Problem::BeyondEnd { .. }, .. }));
                assert!(beyond, "{first} {count}: {error:?}");
            }
        }
    })
    .unwrap();
}

/// The engine has the sum in pieces of its own, and the list's memory is none that it could be read into at once.
#[test]
fn a_sum_of_device_memory_is_scattered_into_a_list_of_the_host_s() {
    threads_with(2, &shm(), |comm| {
        let device = comm.attach(accelerator(comm.rank(), Options::default())).unwrap();
        let mut buffer = device.alloc::<f32>(2 * COUNT).unwrap();
        fill(&mut buffer, comm.rank(), 0);
        let list = List::new(vec![vec![0.0f32; 300], vec![0.0; COUNT - 300]]);
        let (_, list) = comm.reduce_scatter_into(buffer, list, ReduceOp::Sum).wait().unwrap();
        let first = comm.rank() as usize * COUNT;
        let sums: Vec<f32> = (first..first + COUNT).map(|i| sum(2, 0, i)).collect();
        assert_eq!(list.into_members().concat(), sums);
    })
    .unwrap();
}
