//! One test per row of the table in the crate's documentation, on every level; all 16-bit patterns; random shapes.

mod common;

use common::{Case, Random, elements, is_nan, levels};
use proptest::prelude::*;
use windlass_kernels::{Combine, DataType, Element, Level, ReduceOp, Store, bf16, f16};

/// Folds slices, as many as there are, into one output.
fn fold<T: Element>(level: Level, op: ReduceOp, divisor: u64, inputs: &[&[T]]) -> Vec<T> {
    let combine =
        Combine::reduce(T::DATA_TYPE, op).with_level(level).expect("tests ask for available levels");
    let count = inputs[0].len();
    assert!(inputs.iter().all(|input| input.len() == count));
    let pointers: Vec<*const u8> = inputs.iter().map(|input| input.as_ptr().cast()).collect();
    let mut output = inputs[0].to_vec();
    // SAFETY: every slice has `count` elements, and the output is a vector of its own.
    unsafe { combine.run(&pointers, &[output.as_mut_ptr().cast()], count, divisor, Store::Cached) };
    output
}

const FLOATS: [DataType; 4] = [DataType::F16, DataType::BF16, DataType::F32, DataType::F64];

fn bytes_of(data_type: DataType, value: f64) -> Vec<u8> {
    match data_type {
        DataType::F16 => f16::from_f64(value).to_ne_bytes().to_vec(),
        DataType::BF16 => bf16::from_f64(value).to_ne_bytes().to_vec(),
        DataType::F32 => (value as f32).to_ne_bytes().to_vec(),
        _ => value.to_ne_bytes().to_vec(),
    }
}

/// 70 elements of one value per input, so that blocks, single registers and odd bytes all see it.
fn fold_values(data_type: DataType, level: Level, op: ReduceOp, values: &[f64]) -> Vec<Vec<u8>> {
    let case = Case {
        data_type,
        op: Some(op),
        level,
        outputs: 1,
        count: 70,
        divisor: 1,
        store: Store::Cached,
        misalignment: 0,
        in_place: false,
    };
    let inputs: Vec<_> = values.iter().map(|&value| bytes_of(data_type, value).repeat(70)).collect();
    case.run(&inputs)[0].chunks_exact(data_type.size_bytes()).map(<[u8]>::to_vec).collect()
}

#[test]
fn integers_wrap() {
    for level in levels() {
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&[250_u8; 99], &[10; 99]]), [4; 99]);
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&[i32::MAX; 99], &[2; 99]]), [i32::MIN + 1; 99]);
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&[i64::MIN; 99], &[-1; 99]]), [i64::MAX; 99]);
        assert_eq!(fold(level, ReduceOp::Prod, 1, &[&[16_u8; 99], &[17; 99]]), [16; 99]);
        assert_eq!(fold(level, ReduceOp::Prod, 1, &[&[1 << 30; 99], &[-6; 99]]), [i32::MIN; 99]);
        let product = 0x1234_5678_9abc_def1_i64.wrapping_mul(-0x0fed_cba9_8765_4321);
        let factors: [&[i64]; 2] = [&[0x1234_5678_9abc_def1; 99], &[-0x0fed_cba9_8765_4321; 99]];
        assert_eq!(fold(level, ReduceOp::Prod, 1, &factors), [product; 99]);
    }
}

#[test]
fn integer_averages_wrap_then_truncate_toward_zero() {
    for level in levels() {
        assert_eq!(fold(level, ReduceOp::Avg, 2, &[&[-4_i32; 99], &[-3; 99]]), [-3; 99]);
        assert_eq!(fold(level, ReduceOp::Avg, 3, &[&[-4_i64; 99], &[-4; 99]]), [-2; 99]);
        assert_eq!(fold(level, ReduceOp::Avg, 2, &[&[200_u8; 99], &[100; 99]]), [22; 99]);
        assert_eq!(fold(level, ReduceOp::Avg, 2, &[&[i32::MAX; 99], &[1; 99]]), [i32::MIN / 2; 99]);
        assert_eq!(fold(level, ReduceOp::Avg, u64::MAX, &[&[i64::MIN; 99], &[0; 99]]), [0; 99]);
    }
}

#[test]
fn only_averages_divide_and_only_by_more_than_one() {
    for level in levels() {
        for divisor in [0, 1] {
            assert_eq!(fold(level, ReduceOp::Avg, divisor, &[&[3.0_f32; 99], &[4.0; 99]]), [7.0; 99]);
        }
        for (op, result) in [(ReduceOp::Sum, 7), (ReduceOp::Prod, 12), (ReduceOp::Min, 3), (ReduceOp::Max, 4)]
        {
            assert_eq!(fold(level, op, 2, &[&[3_i32; 99], &[4; 99]]), [result; 99]);
        }
    }
}

#[test]
fn minimum_and_maximum_propagate_nan_from_any_input() {
    for level in levels() {
        for data_type in FLOATS {
            for op in [ReduceOp::Min, ReduceOp::Max] {
                for position in 0..4 {
                    for sign in [1.0, -1.0] {
                        let mut values = [1.0, f64::INFINITY, -2.0, f64::NEG_INFINITY];
                        values[position] = f64::NAN.copysign(sign);
                        for element in fold_values(data_type, level, op, &values) {
                            assert!(is_nan(data_type, &element), "{data_type} {op} {level}: {element:x?}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn minus_zero_is_below_plus_zero_in_any_order() {
    for level in levels() {
        for data_type in FLOATS {
            for values in [[0.0, -0.0], [-0.0, 0.0]] {
                for (op, result) in [(ReduceOp::Min, -0.0), (ReduceOp::Max, 0.0)] {
                    let expected = bytes_of(data_type, result);
                    for element in fold_values(data_type, level, op, &values) {
                        assert_eq!(element, expected, "{data_type} {op} {level}");
                    }
                }
            }
        }
    }
}

/// In bf16 256 + 1 is 256 again, and in f16 2048 + 1 is 2048; in f32 the ones add up before the only rounding.
#[test]
fn sixteen_bit_floats_accumulate_in_f32_and_round_once() {
    let one = [bf16::ONE; 99];
    let half_one = [f16::ONE; 99];
    for level in levels() {
        let big = [bf16::from_f32(256.0); 99];
        let sum = fold(level, ReduceOp::Sum, 1, &[&big, &one, &one, &one]);
        assert_eq!(sum, [bf16::from_f32(260.0); 99], "259 is a tie, and rounds to the even 260");
        let big = [f16::from_f32(2048.0); 99];
        let sum = fold(level, ReduceOp::Sum, 1, &[&big, &half_one, &half_one]);
        assert_eq!(sum, [f16::from_f32(2050.0); 99]);
        // The division precedes the rounding: 65504 + 65504 would be infinite in f16.
        let largest = [f16::MAX; 99];
        assert_eq!(fold(level, ReduceOp::Avg, 2, &[&largest, &largest]), [f16::MAX; 99]);
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&largest, &largest]), [f16::INFINITY; 99]);
    }
}

#[test]
fn floats_add_in_input_order_without_contraction() {
    for level in levels() {
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&[1e20_f64; 9], &[-1e20; 9], &[3.0; 9]]), [3.0; 9]);
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&[3.0_f64; 9], &[1e20; 9], &[-1e20; 9]]), [0.0; 9]);
        assert_eq!(fold(level, ReduceOp::Avg, 3, &[&[1.0_f32; 99], &[1.0; 99]]), [2.0 / 3.0; 99]);
    }
}

#[test]
fn copies_keep_signalling_nans() {
    for level in levels() {
        for &data_type in DataType::ALL {
            let input = bytes_of(DataType::F32, f64::from(f32::from_bits(0x7f80_0001))).repeat(100);
            let pattern: Vec<u8> = input.iter().zip(0_u8..=255).map(|(a, b)| a ^ b).collect();
            let count = pattern.len() / data_type.size_bytes();
            for store in [Store::Cached, Store::Streaming] {
                let case = Case {
                    data_type,
                    op: None,
                    level,
                    outputs: 3,
                    count,
                    divisor: 9,
                    store,
                    misalignment: 0,
                    in_place: true,
                };
                let kept = pattern[..count * data_type.size_bytes()].to_vec();
                case.check_against(std::slice::from_ref(&kept), &kept);
            }
        }
    }
}

#[test]
#[should_panic(expected = "a reduction has at least one input")]
fn no_input_is_the_callers_error() {
    // SAFETY: nothing is accessed.
    unsafe { Combine::reduce(DataType::F32, ReduceOp::Sum).run(&[], &[], 0, 1, Store::Cached) };
}

#[test]
#[should_panic(expected = "a copy has one input, not 2")]
fn a_copy_of_two_inputs_is_the_callers_error() {
    let null = std::ptr::null();
    // SAFETY: nothing is accessed.
    unsafe { Combine::copy(DataType::F32).run(&[null, null], &[], 0, 1, Store::Cached) };
}

#[test]
fn debug_says_type_operator_and_level() {
    let combine = Combine::reduce(DataType::BF16, ReduceOp::Max).with_level(Level::Portable).unwrap();
    assert_eq!(format!("{combine:?}"), "Combine(bf16 max, portable)");
}

#[test]
fn every_16_bit_pattern_survives_a_sum_of_one() {
    let patterns: Vec<u16> = (0..=u16::MAX).step_by(if cfg!(miri) { 641 } else { 1 }).collect();
    let (halves, brains): (Vec<_>, Vec<_>) =
        patterns.iter().map(|&bits| (f16::from_bits(bits), bf16::from_bits(bits))).unzip();
    for level in levels() {
        let half_sums = fold(level, ReduceOp::Sum, 1, &[&halves]);
        let brain_sums = fold(level, ReduceOp::Sum, 1, &[&brains]);
        for (n, &bits) in patterns.iter().enumerate() {
            let (half, brain) = (half_sums[n], brain_sums[n]);
            assert!(half.to_bits() == bits || half.is_nan() && halves[n].is_nan(), "f16 {bits:#x} {level}");
            assert!(
                brain.to_bits() == bits || brain.is_nan() && brains[n].is_nan(),
                "bf16 {bits:#x} {level}"
            );
        }
    }
}

#[test]
fn every_16_bit_pattern_meets_every_kind_of_partner() {
    let partners = [0.0, -0.0, 1.0, -1.5, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 6e-8, 1e-40, 65504.0];
    let patterns: Vec<u8> =
        (0..=u16::MAX).step_by(if cfg!(miri) { 6421 } else { 1 }).flat_map(u16::to_ne_bytes).collect();
    let count = patterns.len() / 2;
    for data_type in [DataType::F16, DataType::BF16] {
        for partner in partners {
            let inputs = [patterns.clone(), bytes_of(data_type, partner).repeat(count)];
            for &op in ReduceOp::ALL {
                let case = Case {
                    data_type,
                    op: Some(op),
                    level: Level::Portable,
                    outputs: 1,
                    count,
                    divisor: 3,
                    store: Store::Cached,
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
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 400 }, failure_persistence: None,
        ..ProptestConfig::default() })]

    #[test]
    fn any_shape_is_exact_on_every_level(
        (type_code, op_code) in (0_u8..7, 0_u8..5),
        k in 1_usize..12,
        outputs in 0_usize..7,
        count in 0_usize..if cfg!(miri) { 60 } else { 700 },
        divisor in prop_oneof![0_u64..20, any::<u64>()],
        misalignment in 0_usize..64,
        (in_place, streaming) in any::<(bool, bool)>(),
        seed in any::<u64>(),
    ) {
        let data_type = DataType::from_code(type_code).unwrap();
        let mut random = Random::new(seed);
        let inputs: Vec<_> = (0..k).map(|_| elements(data_type, count, &mut random)).collect();
        let store = if streaming { Store::Streaming } else { Store::Cached };
        let op = ReduceOp::from_code(op_code);
        let case = Case {
            data_type, op, level: Level::Portable, outputs, count, divisor, store, misalignment, in_place,
        };
        let expected = case.expected(&inputs);
        for level in levels() {
            Case { level, ..case }.check_against(&inputs, &expected);
        }
    }
}
