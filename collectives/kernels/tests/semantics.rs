//! One test per row of the table in the crate's documentation, on every level; all 16-bit patterns; random shapes.

mod common;

use common::{Case, Random, elements, is_nan, levels, narrow, operators, widen};
use proptest::prelude::*;
use windlass_kernels::{
    Bool, Combine, Complex, DataType, Element, F8E4M3, F8E5M2, F64I32, I32I32, Level, ReduceOp, Store, bf16,
    f16,
};

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

const FLOATS: [DataType; 6] =
    [DataType::E4M3, DataType::E5M2, DataType::F16, DataType::BF16, DataType::F32, DataType::F64];

fn bytes_of(data_type: DataType, value: f64) -> Vec<u8> {
    match data_type {
        DataType::F16 => f16::from_f64(value).to_ne_bytes().to_vec(),
        DataType::BF16 => bf16::from_f64(value).to_ne_bytes().to_vec(),
        DataType::F32 => (value as f32).to_ne_bytes().to_vec(),
        DataType::E4M3 | DataType::E5M2 => vec![narrow(data_type, value)],
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
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&[100_i8; 99], &[100; 99]]), [-56; 99]);
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&[u16::MAX; 99], &[2; 99]]), [1; 99]);
        assert_eq!(fold(level, ReduceOp::Prod, 1, &[&[300_i16; 99], &[-300; 99]]), [-24464; 99]);
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&[u32::MAX; 99], &[2; 99]]), [1; 99]);
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&[u64::MAX; 99], &[2; 99]]), [1; 99]);
    }
}

#[test]
fn signs_count_where_there_are_some() {
    for level in levels() {
        assert_eq!(fold(level, ReduceOp::Max, 1, &[&[-1_i8; 99], &[1; 99]]), [1; 99]);
        assert_eq!(fold(level, ReduceOp::Max, 1, &[&[255_u8; 99], &[1; 99]]), [255; 99]);
        assert_eq!(fold(level, ReduceOp::Min, 1, &[&[-1_i16; 99], &[1; 99]]), [-1; 99]);
        assert_eq!(fold(level, ReduceOp::Min, 1, &[&[u16::MAX; 99], &[1; 99]]), [1; 99]);
        assert_eq!(fold(level, ReduceOp::Max, 1, &[&[u32::MAX; 99], &[1; 99]]), [u32::MAX; 99]);
        assert_eq!(fold(level, ReduceOp::Max, 1, &[&[u64::MAX; 99], &[1; 99]]), [u64::MAX; 99]);
        assert_eq!(fold(level, ReduceOp::Min, 1, &[&[1 << 63; 99], &[1_u64; 99]]), [1; 99]);
        assert_eq!(fold(level, ReduceOp::Avg, 2, &[&[200_u8; 99], &[10; 99]]), [105; 99]);
        assert_eq!(fold(level, ReduceOp::Avg, 2, &[&[-100_i8; 99], &[-1; 99]]), [-50; 99]);
        assert_eq!(fold(level, ReduceOp::Avg, 2, &[&[u64::MAX; 99], &[0; 99]]), [u64::MAX / 2; 99]);
    }
}

#[test]
fn bits_combine_one_by_one() {
    for level in levels() {
        for (op, expected) in
            [(ReduceOp::BitAnd, 0x0088), (ReduceOp::BitOr, 0xfefe), (ReduceOp::BitXor, 0xfe76)]
        {
            assert_eq!(fold(level, op, 1, &[&[0xf0aa_u16; 99], &[0x0edc; 99]]), [expected; 99], "{op}");
        }
        assert_eq!(fold(level, ReduceOp::BitXor, 1, &[&[-1_i64; 99], &[1; 99]]), [-2; 99]);
    }
}

#[test]
fn logical_operators_yield_zero_or_one() {
    let values = [[7, 0, 5], [7, 8, 0], [0, 0, 0], [1, 2, 4]];
    for level in levels() {
        for (op, expected) in [
            (ReduceOp::LogicalAnd, [0_i32, 0, 0, 1]),
            (ReduceOp::LogicalOr, [1, 1, 0, 1]),
            (ReduceOp::LogicalXor, [0, 0, 0, 1]),
        ] {
            for (case, expected) in values.iter().zip(expected) {
                let inputs = case.map(|value| [value; 99]);
                assert_eq!(fold(level, op, 1, &[&inputs[0], &inputs[1], &inputs[2]]), [expected; 99], "{op}");
                let truths = case.map(|value| [value as u8 * 16; 99]);
                let result = fold(level, op, 1, &[&truths[0], &truths[1], &truths[2]]);
                assert_eq!(result, [expected as u8; 99], "{op}");
                assert_eq!(fold(level, op, 1, &[&inputs[0]]), [i32::from(case[0] != 0); 99], "{op} of one");
            }
        }
    }
}

#[test]
fn truth_values_are_any_byte_but_zero_and_results_are_zero_or_one() {
    let elements = |byte: u8| vec![byte; 99];
    for level in levels() {
        for op in operators(DataType::Bool) {
            for (a, b) in [(2, 1), (0x80, 0), (0, 0), (255, 255)] {
                let inputs = [elements(a), elements(b)];
                let case = Case {
                    data_type: DataType::Bool,
                    op: Some(op),
                    level,
                    outputs: 1,
                    count: 99,
                    divisor: 2,
                    store: Store::Cached,
                    misalignment: 0,
                    in_place: false,
                };
                let (x, y) = (a != 0, b != 0);
                let expected = match op {
                    ReduceOp::Prod | ReduceOp::Min | ReduceOp::BitAnd | ReduceOp::LogicalAnd => x && y,
                    ReduceOp::BitXor | ReduceOp::LogicalXor => x != y,
                    _ => x || y,
                };
                assert_eq!(case.run(&inputs)[0], elements(expected.into()), "{op} of {a} and {b}, {level}");
            }
        }
        let yes = [Bool::from(true); 9];
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&yes, &yes]), yes);
    }
}

#[test]
fn complex_numbers_add_by_part_and_multiply_as_complex_numbers_do() {
    let (a, b) = ([Complex::new(1.0_f32, 2.0); 99], [Complex::new(3.0, -5.0); 99]);
    for level in levels() {
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&a, &b]), [Complex::new(4.0, -3.0); 99]);
        assert_eq!(fold(level, ReduceOp::Avg, 2, &[&a, &b]), [Complex::new(2.0, -1.5); 99]);
        assert_eq!(fold(level, ReduceOp::Prod, 1, &[&a, &b]), [Complex::new(13.0, 1.0); 99]);
        let c = [Complex::new(0.0_f64, 1.0); 99];
        assert_eq!(fold(level, ReduceOp::Prod, 1, &[&c, &c]), [Complex::new(-1.0, 0.0); 99]);
    }
}

#[test]
fn of_equal_pairs_the_lowest_place_wins_and_any_nan_before_all() {
    let of = |value, index| [F64I32::new(value, index); 99];
    let nan = f64::NAN;
    for level in levels() {
        let min = |inputs: &[&[F64I32]]| fold(level, ReduceOp::MinLoc, 1, inputs)[98];
        let max = |inputs: &[&[F64I32]]| fold(level, ReduceOp::MaxLoc, 1, inputs)[98];
        assert_eq!(min(&[&of(2.0, 1), &of(1.0, 7), &of(1.0, -3)]), F64I32::new(1.0, -3));
        assert_eq!(max(&[&of(2.0, 4), &of(1.0, 0), &of(2.0, 3)]), F64I32::new(2.0, 3));
        // As for min and max, the zeros differ.
        assert_eq!(min(&[&of(0.0, 1), &of(-0.0, 2)]).index, 2);
        assert_eq!(max(&[&of(-0.0, 1), &of(0.0, 2)]).index, 2);
        for inputs in [[of(nan, 5), of(1.0, 0), of(-nan, 3)], [of(-nan, 3), of(nan, 5), of(1.0, 0)]] {
            for result in
                [min(&[&inputs[0], &inputs[1], &inputs[2]]), max(&[&inputs[0], &inputs[1], &inputs[2]])]
            {
                assert!(result.value.is_nan() && result.index == 3, "{result:?}");
            }
        }
        let result =
            fold(level, ReduceOp::MaxLoc, 1, &[&[I32I32::new(i32::MIN, 1); 5], &[I32I32::new(-1, 9); 5]]);
        assert_eq!(result, [I32I32::new(-1, 9); 5]);
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

/// 16 + 1 is 16 again in E4M3, and 8 + 1 is 8 in E5M2.
#[test]
fn eight_bit_floats_accumulate_in_f32_and_round_once() {
    for level in levels() {
        let of = |value| [F8E4M3::from_f32(value); 99];
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&of(16.0), &of(1.0), &of(1.0)]), of(18.0));
        assert_eq!(fold(level, ReduceOp::Avg, 2, &[&of(448.0), &of(448.0)]), of(448.0), "no overflow before");
        let of = |value| [F8E5M2::from_f32(value); 99];
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&of(8.0), &of(1.0), &of(1.0)]), of(10.0));
        assert_eq!(fold(level, ReduceOp::Avg, 2, &[&of(57344.0), &of(57344.0)]), of(57344.0));
    }
}

#[test]
fn eight_bit_overflow_is_nan_in_e4m3_and_infinite_in_e5m2() {
    for level in levels() {
        let of = |value| [F8E4M3::from_f32(value); 99];
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&of(448.0), &of(16.0)]), of(448.0), "a tie, to even");
        assert!(fold(level, ReduceOp::Sum, 1, &[&of(448.0), &of(18.0)])[98].to_f32().is_nan());
        let of = |value| [F8E5M2::from_f32(value); 99];
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&of(57344.0), &of(3584.0)]), of(57344.0));
        assert_eq!(fold(level, ReduceOp::Sum, 1, &[&of(-57344.0), &of(-4096.0)]), of(f32::NEG_INFINITY));
    }
}

#[test]
fn scaling_multiplies_in_the_type_of_the_calculation_and_rounds_once() {
    let mut random = Random::new(5);
    let numbers = elements(DataType::F32, 300, &mut random);
    let numbers: Vec<f32> =
        numbers.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect();
    for factor in [0.1_f64, -3.0, 0.0, 1e300] {
        for level in levels() {
            /// `$scaled` of each of the numbers, as the type, against the kernel's.
            macro_rules! check {
                ($element:ty, $of:expr, $scaled:expr) => {{
                    let input: Vec<$element> = numbers.iter().map(|&x| $of(x)).collect();
                    let mut output = input.clone();
                    let scale = Combine::scale(<$element>::DATA_TYPE).unwrap().with_level(level).unwrap();
                    let place = output.as_mut_ptr().cast::<u8>();
                    // SAFETY: the output has 300 elements, and is exactly the input.
                    unsafe { scale.run(&[place], &[place], 300, factor.to_bits(), Store::Cached) };
                    for (x, y) in input.into_iter().zip(output) {
                        let expected: $element = $scaled(x);
                        let bytes = |element: $element| format!("{element:?}");
                        assert_eq!(bytes(y), bytes(expected), "{factor} times {x:?}, {level}");
                    }
                }};
            }
            check!(f32, |x| x, |x| x * factor as f32);
            check!(f64, f64::from, |x| x * factor);
            check!(f16, f16::from_f32, |x: f16| f16::from_f32(x.to_f32() * factor as f32));
            check!(bf16, bf16::from_f32, |x: bf16| bf16::from_f32(x.to_f32() * factor as f32));
            check!(Complex<f32>, |x: f32| Complex::new(x, -x), |z: Complex<f32>| z.scale(factor as f32));
            check!(Complex<f64>, |x: f32| Complex::new(x.into(), 1.0), |z: Complex<f64>| z.scale(factor));
        }
    }
    assert!(Combine::scale(DataType::I32).is_err() && Combine::scale(DataType::E4M3).is_err());
}

/// The sum of what was scaled is a sum.
#[test]
fn a_scaled_sum_adds() {
    for level in levels() {
        let result = fold(level, ReduceOp::ScaledSum, 7, &[&[1.5_f32; 99], &[2.0; 99]]);
        assert_eq!(result, [3.5; 99]);
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
#[should_panic(expected = "a scaling has one input, not 2")]
fn a_scaling_of_two_inputs_is_the_callers_error() {
    let null = std::ptr::null();
    // SAFETY: nothing is accessed.
    unsafe { Combine::scale(DataType::F32).unwrap().run(&[null, null], &[], 0, 0, Store::Cached) };
}

#[test]
#[should_panic(expected = "max is not defined on complex64; use one of: sum, prod, avg, scaled_sum")]
fn an_operator_that_is_not_defined_is_the_callers_error() {
    let _ = Combine::reduce(DataType::Complex64, ReduceOp::Max);
}

/// The table of the documentation, once more.
#[test]
fn operators_are_defined_on_what_the_table_says() {
    let arithmetic = "sum prod min max avg";
    let bits = "band bor bxor land lor lxor";
    for &data_type in DataType::ALL {
        let name = data_type.name();
        let expected = match name {
            "i8" | "u8" | "i16" | "u16" | "i32" | "u32" | "i64" | "u64" => format!("{arithmetic} {bits}"),
            "f16" | "bf16" | "f32" | "f64" => format!("{arithmetic} scaled_sum"),
            "e4m3" | "e5m2" => arithmetic.to_owned(),
            "bool" => format!("sum prod min max {bits}"),
            "complex64" | "complex128" => "sum prod avg scaled_sum".to_owned(),
            _ => "minloc maxloc".to_owned(),
        };
        let names: Vec<_> = operators(data_type).map(ReduceOp::name).collect();
        assert_eq!(names.join(" "), expected, "{name}");
        assert_eq!(Combine::scale(data_type).is_ok(), expected.contains("scaled_sum"), "{name}");
        for op in operators(data_type) {
            for level in levels() {
                let combine = Combine::reduce(data_type, op).with_level(level).unwrap();
                assert_eq!(
                    (combine.data_type(), combine.op(), combine.level()),
                    (data_type, Some(op), level)
                );
            }
        }
    }
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
            for op in operators(data_type) {
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

#[test]
fn every_8_bit_pattern_meets_every_other() {
    let step = if cfg!(miri) { 37 } else { 1 };
    let codes = || (0..=u8::MAX).step_by(step);
    let (first, second): (Vec<u8>, Vec<u8>) = codes().flat_map(|a| codes().map(move |b| (a, b))).unzip();
    let count = first.len();
    let inputs = [first, second];
    for data_type in [DataType::E4M3, DataType::E5M2] {
        for op in operators(data_type) {
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

#[test]
fn all_8_bit_codes_are_the_specifications_numbers_and_come_back() {
    // The ends of the OCP specification's tables.
    for (data_type, code, number) in [
        (DataType::E4M3, 0x7e, 448.0),
        (DataType::E4M3, 0x08, 2_f64.powi(-6)),
        (DataType::E4M3, 0x01, 2_f64.powi(-9)),
        (DataType::E5M2, 0x7b, 57344.0),
        (DataType::E5M2, 0x04, 2_f64.powi(-14)),
        (DataType::E5M2, 0x01, 2_f64.powi(-16)),
        (DataType::E5M2, 0x7c, f64::INFINITY),
    ] {
        assert_eq!(widen(data_type, code).to_bits(), number.to_bits());
    }
    for code in 0..=u8::MAX {
        let (e4m3, e5m2) = (F8E4M3::from_bits(code), F8E5M2::from_bits(code));
        for (data_type, ours, back) in [
            (DataType::E4M3, e4m3.to_f32(), F8E4M3::from_f32(e4m3.to_f32()).to_bits()),
            (DataType::E5M2, e5m2.to_f32(), F8E5M2::from_f32(e5m2.to_f32()).to_bits()),
        ] {
            let expected = widen(data_type, code);
            let nan = ours.is_nan() && expected.is_nan();
            assert!(nan || f64::from(ours).to_bits() == expected.to_bits(), "{data_type} {code:#x}: {ours}");
            assert!(back == code || nan && is_nan(data_type, &[back]), "{data_type} {code:#x}: {back:#x}");
        }
    }
}

#[test]
fn narrowing_to_8_bits_rounds_every_boundary_to_the_nearest_even() {
    let check = |value: f32| {
        for (data_type, ours) in [
            (DataType::E4M3, F8E4M3::from_f32(value).to_bits()),
            (DataType::E5M2, F8E5M2::from_f32(value).to_bits()),
        ] {
            let expected = narrow(data_type, value.into());
            let nan = is_nan(data_type, &[ours]) && is_nan(data_type, &[expected]);
            assert!(ours == expected || nan, "{data_type} {value:e}: {ours:#x}, not {expected:#x}");
        }
    };
    for upper in (0..=u16::MAX).step_by(if cfg!(miri) { 997 } else { 1 }) {
        // With the upper half of an f32 every code and every tie between two is met; these are their neighbours.
        for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            check(f32::from_bits(u32::from(upper) << 16 | lower));
        }
    }
    for boundary in [448.0_f32, 464.0, 480.0, 57344.0, 61440.0, 65536.0] {
        for near in [boundary.next_down(), boundary, boundary.next_up(), -boundary] {
            check(near);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 400 }, failure_persistence: None,
        ..ProptestConfig::default() })]

    #[test]
    fn any_shape_is_exact_on_every_level(
        (type_code, choice) in (0_u8..22, any::<usize>()),
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
        let ops: Vec<_> = operators(data_type).collect();
        let op = Some(ops[choice % ops.len()]);
        let case = Case {
            data_type, op, level: Level::Portable, outputs, count, divisor, store, misalignment, in_place,
        };
        let expected = case.expected(&inputs);
        for level in levels() {
            Case { level, ..case }.check_against(&inputs, &expected);
        }
    }
}
