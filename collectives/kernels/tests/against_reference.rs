//! Every level, type, operator and shape against the reference.

mod common;

use common::{Case, Random, elements, levels, operators};
use windlass_kernels::{DataType, Level, ReduceOp, Store};

/// Around every power of two that is some register's, block's or piece's size.
const COUNTS: &[usize] = if cfg!(miri) {
    &[0, 1, 3, 8, 17, 33, 129]
} else {
    &[0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000, 4099]
};
const INPUTS: &[usize] = if cfg!(miri) { &[1, 2, 3] } else { &[1, 2, 3, 4, 5, 6, 7, 8, 9] };
const OUTPUTS: &[usize] = if cfg!(miri) { &[0, 1, 2] } else { &[0, 1, 2, 3, 5] };

/// Every shape of one operation. The expected result is calculated once per number of inputs; misalignment, place
/// and store vary with the shape, and all of them are met at every count.
fn check(data_type: DataType, op: Option<ReduceOp>) {
    let mut random = Random::new(u64::from(data_type.code()) * 16 + op.map_or(15, |op| op.code().into()));
    let longest = COUNTS.iter().copied().max().expect("there are counts");
    let inputs_max = INPUTS.iter().copied().max().expect("there are numbers of inputs");
    let all: Vec<_> = (0..inputs_max).map(|_| elements(data_type, longest, &mut random)).collect();
    for &k in if op.is_some() { INPUTS } else { &[1][..] } {
        let inputs = &all[..k];
        let divisor = [k as u64, 1, 2, 3, 1000][random.next() as usize % 5];
        let model = Case {
            data_type,
            op,
            level: Level::Portable,
            outputs: 1,
            count: longest,
            divisor,
            store: Store::Cached,
            misalignment: 0,
            in_place: false,
        };
        let expected = model.expected(inputs);
        for level in levels() {
            for &count in COUNTS {
                for &outputs in OUTPUTS {
                    for turn in 0..4 {
                        let store = if turn & 1 == 0 { Store::Cached } else { Store::Streaming };
                        let misalignment = if turn == 3 { 0 } else { (random.next() % 8) as usize };
                        let case =
                            Case { level, outputs, count, store, misalignment, in_place: turn >= 2, ..model };
                        case.check_against(inputs, &expected[..count * data_type.size_bytes()]);
                    }
                }
            }
        }
    }
}

macro_rules! every_operator {
    ($($name:ident: $data_type:ident;)*) => { $(
        #[test]
        fn $name() {
            check(DataType::$data_type, None);
            for op in operators(DataType::$data_type) {
                check(DataType::$data_type, Some(op));
            }
        }
    )* };
}

every_operator! {
    u8_is_exact: U8;
    i32_is_exact: I32;
    i64_is_exact: I64;
    f16_is_exact: F16;
    bf16_is_exact: BF16;
    f32_is_exact: F32;
    f64_is_exact: F64;
    i8_is_exact: I8;
    i16_is_exact: I16;
    u16_is_exact: U16;
    u32_is_exact: U32;
    u64_is_exact: U64;
    e4m3_is_exact: E4M3;
    e5m2_is_exact: E5M2;
    bool_is_exact: Bool;
    complex64_is_exact: Complex64;
    complex128_is_exact: Complex128;
    f32i32_is_exact: F32I32;
    f64i32_is_exact: F64I32;
    i32i32_is_exact: I32I32;
    f64i64_is_exact: F64I64;
    i64i64_is_exact: I64I64;
}

/// All misalignments, in and out of place, cached and streaming, at sizes that have a head, blocks and a tail.
#[test]
fn every_misalignment_is_exact() {
    let mut random = Random::new(99);
    for &data_type in DataType::ALL {
        let inputs: Vec<_> = (0..2).map(|_| elements(data_type, 1031, &mut random)).collect();
        for level in levels() {
            for misalignment in 0..if cfg!(miri) { 2 } else { 8 } {
                for (outputs, in_place, store) in [
                    (1, false, Store::Cached),
                    (2, true, Store::Cached),
                    (1, true, Store::Streaming),
                    (3, false, Store::Streaming),
                ] {
                    for count in if cfg!(miri) { vec![9, 67] } else { vec![1, 9, 67, 521, 1031] } {
                        for op in [None, operators(data_type).next()] {
                            let inputs = if op.is_some() { &inputs[..] } else { &inputs[..1] };
                            let case = Case {
                                data_type,
                                op,
                                level,
                                outputs,
                                count,
                                divisor: 1,
                                store,
                                misalignment,
                                in_place,
                            };
                            case.check_against(inputs, &case.expected(inputs));
                        }
                    }
                }
            }
        }
    }
}

/// Outputs that share an alignment which is not the register's have a head before the streamed blocks.
#[test]
fn a_shared_misalignment_streams_after_a_head() {
    let mut random = Random::new(7);
    for &data_type in DataType::ALL {
        let inputs: Vec<_> = (0..2).map(|_| elements(data_type, 700, &mut random)).collect();
        for level in levels() {
            for eighths in 0..8 {
                // One output, so that it always shares its alignment with all.
                let case = Case {
                    data_type,
                    op: operators(data_type).next(),
                    level,
                    outputs: 1,
                    count: if cfg!(miri) { 100 } else { 700 },
                    divisor: 1,
                    store: Store::Streaming,
                    misalignment: eighths * 8,
                    in_place: eighths & 1 == 1,
                };
                case.check_against(&inputs, &case.expected(&inputs));
            }
        }
    }
}

/// The canary: with one wrong element in what it is compared with, a run must be reported as different, wherever
/// the element is, and however small the fault: one bit.
#[test]
fn a_planted_fault_is_caught() {
    let mut random = Random::new(1);
    for &data_type in DataType::ALL {
        let inputs: Vec<_> = (0..2).map(|_| elements(data_type, 129, &mut random)).collect();
        for level in levels() {
            let case = Case {
                data_type,
                op: operators(data_type).last(),
                level,
                outputs: 1,
                count: 129,
                divisor: 1,
                store: Store::Cached,
                misalignment: 1,
                in_place: false,
            };
            let output = case.run(&inputs).remove(0);
            let mut reference = case.expected(&inputs);
            assert_eq!(case.difference(&reference, &output), None);
            let size = data_type.size_bytes();
            let mut planted = 0;
            for position in [0, 31, 64, 128].map(|e| e * size) {
                // Two different NaNs are alike, so a bit planted in one would rightly pass.
                if common::is_nan(data_type, &reference[position..][..size]) {
                    continue;
                }
                reference[position] ^= 1;
                assert!(case.difference(&reference, &output).is_some(), "fault at byte {position}, {case:?}");
                reference[position] ^= 1;
                planted += 1;
            }
            assert!(planted >= 2, "{planted} faults are too few to trust, {case:?}");
        }
    }
}

/// Every 8-bit float added to every other one, alone, and with a third that pushes sums off ties.
#[test]
fn all_pairs_of_eight_bit_floats_add_alike_on_all_levels() {
    let all = if cfg!(miri) { 16 } else { 256 };
    let (first, second): (Vec<u8>, Vec<u8>) =
        (0..all * all).map(|at| ((at / all) as u8, (at % all) as u8)).unzip();
    for data_type in [DataType::E4M3, DataType::E5M2] {
        for third in [None, Some(0x01), Some(0x81), Some(0x38), Some(0xf0)] {
            let mut inputs = vec![first.clone(), second.clone()];
            inputs.extend(third.map(|code| vec![code; first.len()]));
            let op = Some(ReduceOp::Sum);
            let (count, store) = (first.len(), Store::Cached);
            let case = Case {
                data_type,
                op,
                level: Level::Portable,
                outputs: 1,
                count,
                divisor: 1,
                store,
                misalignment: 0,
                in_place: false,
            };
            let expected = case.expected(&inputs);
            for level in levels() {
                Case { level, ..case }.check_against(&inputs, &expected);
            }
        }
    }
}
