//! Types and operators as a program meets them: what is refused, what is only moved, and a scaled sum.

use windlass::{
    Bool, Collective, Complex, DataType, Element, Error, F8E4M3, F64I32, Problem, RawRequest, ReduceOp, bf16,
};

#[test]
fn each_rank_scales_by_a_number_of_its_own() {
    // Small enough for a line, for a slot, and for neither.
    for count in [1, 100, 100_000] {
        let results = windlass::threads(3, |comm| {
            let mut input = vec![bf16::from_f32(2.0); count];
            let mut output = vec![bf16::ZERO; count];
            let mut request = RawRequest::new(Collective::AllReduce, DataType::BF16, count);
            request.op = ReduceOp::ScaledSum;
            request.scalar = f64::from(comm.rank()) - 0.5;
            (request.input, request.output) = (input.as_ptr().cast(), output.as_mut_ptr().cast());
            // SAFETY: both have `count` elements and outlive the call.
            unsafe { comm.blocking().perform(&request).unwrap() };
            assert_eq!(input, vec![bf16::from_f32(2.0); count], "an input that is no output stays");
            (request.input, request.output) = (input.as_ptr().cast(), input.as_mut_ptr().cast());
            // SAFETY: as above, in place.
            unsafe { comm.blocking().perform(&request).unwrap() };
            assert_eq!(input, output);
            output
        });
        for output in results.unwrap() {
            assert_eq!(output, vec![bf16::from_f32(-1.0 + 1.0 + 3.0); count]);
        }
    }
}

#[test]
fn what_is_not_defined_is_refused_and_breaks_nothing() {
    windlass::threads(2, |comm| {
        let blocking = comm.blocking();
        let problem = |result: Result<(), Error>| match result.unwrap_err() {
            Error::InvalidArgument { argument: "the operator", problem, .. } => problem,
            other => panic!("{other}"),
        };
        let mut complex = [Complex::new(1.0f32, 2.0); 3];
        let refused = problem(blocking.all_reduce(&mut complex, ReduceOp::Max));
        assert_eq!(refused, Problem::Unsupported(ReduceOp::Max.on(DataType::Complex64).unwrap_err()));
        let mut one = [0f32];
        let refused = blocking.reduce_scatter_into(&[1f32, 2.0], &mut one, ReduceOp::ScaledSum);
        assert_eq!(problem(refused), Problem::Scaled);
        blocking.all_reduce(&mut complex, ReduceOp::Sum).unwrap();
        assert_eq!(complex, [Complex::new(2.0, 4.0); 3]);
    })
    .unwrap();
}

/// What is aligned for its parts only is aligned, and what has no sum can still be moved.
#[test]
fn every_shape_of_element_is_moved_and_reduced() {
    fn reduced<T: Element>(op: ReduceOp, of: impl Fn(u32) -> T + Sync) -> Vec<T> {
        let results = windlass::threads(3, |comm| {
            let mut moved = vec![of(comm.rank()); 33];
            comm.blocking().broadcast(&mut moved, 1).unwrap();
            let mut memory = vec![of(comm.rank()); 33];
            comm.blocking().all_reduce(&mut memory, op).unwrap();
            [moved[32], memory[32]]
        });
        results.unwrap().swap_remove(2).into()
    }
    let pair = |rank: u32| F64I32::new(f64::from(rank % 2), 10 - rank as i32);
    assert_eq!(reduced(ReduceOp::MinLoc, pair), [pair(1), pair(2)]);
    let truth = |rank| Bool::from(rank == 1);
    assert_eq!(reduced(ReduceOp::Sum, truth), [Bool::from(true), Bool::from(true)]);
    assert_eq!(reduced(ReduceOp::LogicalAnd, truth), [Bool::from(true), Bool::from(false)]);
    let eighth = |rank| F8E4M3::from_f32(rank as f32 / 8.0);
    assert_eq!(reduced(ReduceOp::Sum, eighth), [eighth(1), eighth(3)]);
    let complex = |rank| Complex::new(f64::from(rank), 1.0);
    assert_eq!(reduced(ReduceOp::Prod, complex), [complex(1), Complex::new(-3.0, 1.0)]);
}
