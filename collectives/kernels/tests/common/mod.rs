//! What the kernels are compared with: one element at a time, written for clarity, sharing nothing with the crate.

use windlass_kernels::{Combine, DataType, Level, ReduceOp, Store, bf16, f16};

/// The levels that this CPU has.
pub(crate) fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.iter().copied().filter(|level| level.is_available())
}

/// The minimum as the documentation words it: NaN wins, and -0.0 is below +0.0.
fn least<F: Copy + PartialOrd>(a: F, b: F, is_nan: fn(F) -> bool, is_negative: fn(F) -> bool) -> F {
    match a.partial_cmp(&b) {
        None => [a, b].into_iter().find(|&x| is_nan(x)).expect("only a NaN is not ordered"),
        Some(std::cmp::Ordering::Less) => a,
        Some(std::cmp::Ordering::Greater) => b,
        Some(std::cmp::Ordering::Equal) => [a, b].into_iter().find(|&x| is_negative(x)).unwrap_or(a),
    }
}

macro_rules! float_reference {
    ($name:ident, $float:ty) => {
        fn $name(values: &[$float], op: ReduceOp, divisor: u64) -> $float {
            let min = |a, b| least::<$float>(a, b, <$float>::is_nan, <$float>::is_sign_negative);
            let mut total = values[0];
            for &value in &values[1..] {
                total = match op {
                    ReduceOp::Sum | ReduceOp::Avg | ReduceOp::ScaledSum => total + value,
                    ReduceOp::Prod => total * value,
                    ReduceOp::Min => min(total, value),
                    ReduceOp::Max => -min(-total, -value),
                    _ => panic!("no reference for {op}"),
                };
            }
            if op == ReduceOp::Avg && divisor > 1 { total / divisor as $float } else { total }
        }
    };
}
float_reference!(fold_f32, f32);
float_reference!(fold_f64, f64);

/// Exact arithmetic, wrapped into `bits` bits after every input; the division is exact too.
fn fold_integers(values: &[i128], op: ReduceOp, divisor: u64, bits: u32, signed: bool) -> i128 {
    let wrap = |x: i128| {
        let low = x & ((1 << bits) - 1);
        if signed && low >> (bits - 1) == 1 { low - (1 << bits) } else { low }
    };
    let truths = values.iter().filter(|&&value| value != 0).count();
    match op {
        ReduceOp::LogicalAnd => return (truths == values.len()).into(),
        ReduceOp::LogicalOr => return (truths > 0).into(),
        ReduceOp::LogicalXor => return (truths % 2 == 1).into(),
        _ => {}
    }
    let mut total = values[0];
    for &value in &values[1..] {
        total = match op {
            ReduceOp::Sum | ReduceOp::Avg => wrap(total + value),
            ReduceOp::Prod => wrap(total.wrapping_mul(value)),
            ReduceOp::Min => total.min(value),
            ReduceOp::Max => total.max(value),
            ReduceOp::BitAnd => total & value,
            ReduceOp::BitOr => total | value,
            ReduceOp::BitXor => total ^ value,
            _ => panic!("no reference for {op}"),
        };
    }
    if op == ReduceOp::Avg && divisor > 1 { total / i128::from(divisor) } else { total }
}

/// Of truth values sum and maximum are their disjunction, product and minimum their conjunction.
fn fold_truth(values: &[bool], op: ReduceOp) -> bool {
    match op {
        ReduceOp::Sum | ReduceOp::Max | ReduceOp::BitOr | ReduceOp::LogicalOr => values.contains(&true),
        ReduceOp::Prod | ReduceOp::Min | ReduceOp::BitAnd | ReduceOp::LogicalAnd => !values.contains(&false),
        ReduceOp::BitXor | ReduceOp::LogicalXor => {
            values.iter().fold(false, |parity, &value| parity != value)
        }
        _ => panic!("no reference for {op}"),
    }
}

/// The place of the pair that wins: any NaN before any number, then the extreme value (-0.0 below +0.0), then the lowest place.
/// A value that is no float is never NaN; `f64` and `i64` values are compared in i128 by `order`.
fn winner<V: Copy>(pairs: &[(V, i64)], is_nan: fn(V) -> bool, order: fn(V) -> i128, op: ReduceOp) -> usize {
    let sign = match op {
        ReduceOp::MinLoc => 1,
        ReduceOp::MaxLoc => -1,
        _ => panic!("no reference for {op}"),
    };
    let key = |&(value, index): &(V, i64)| {
        let nan = is_nan(value);
        (!nan, if nan { 0 } else { sign * order(value) }, index)
    };
    (0..pairs.len()).min_by_key(|&at| key(&pairs[at])).expect("there are pairs")
}

/// A number that grows with the float: its bits, with those of negative floats counted downwards from -1.
fn order_of_float(value: f64) -> i128 {
    let magnitude = i128::from(value.abs().to_bits());
    if value.is_sign_negative() { -1 - magnitude } else { magnitude }
}

/// An 8-bit float as OCP's specification words it: bias, bits of mantissa, the code of the largest number.
struct SmallFloat {
    bias: i32,
    mantissa: u32,
    largest: u8,
    /// What a magnitude beyond the largest becomes.
    beyond: u8,
}

const NAN: u8 = 0x7f;

fn small_float(data_type: DataType) -> SmallFloat {
    match data_type {
        DataType::E4M3 => SmallFloat { bias: 7, mantissa: 3, largest: 0x7e, beyond: NAN },
        DataType::E5M2 => SmallFloat { bias: 15, mantissa: 2, largest: 0x7b, beyond: 0x7c },
        _ => panic!("{data_type} has more than 8 bits"),
    }
}

/// The number of a code, or where there is none its infinity or NaN.
pub(crate) fn widen(data_type: DataType, code: u8) -> f64 {
    let SmallFloat { bias, mantissa, largest, beyond } = small_float(data_type);
    let magnitude = code & 0x7f;
    let sign = if code >= 0x80 { -1.0 } else { 1.0 };
    if magnitude > largest {
        return if magnitude == beyond && beyond != NAN { sign * f64::INFINITY } else { f64::NAN };
    }
    let places = f64::from(1_u32 << mantissa);
    let (exponent, fraction) = (i32::from(magnitude >> mantissa), f64::from(magnitude) % places / places);
    let (power, leading) = if exponent == 0 { (1 - bias, 0.0) } else { (exponent - bias, 1.0) };
    sign * (leading + fraction) * 2_f64.powi(power)
}

/// The code of the nearest number, the even one of two; as if there were one more beyond the largest, which is `beyond`.
pub(crate) fn narrow(data_type: DataType, value: f64) -> u8 {
    let SmallFloat { mantissa, largest, beyond, .. } = small_float(data_type);
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return NAN;
    }
    let top = widen(data_type, largest);
    let step = top - widen(data_type, largest - 1);
    let number = |code: u8| if code > largest { top + step } else { widen(data_type, code) };
    // The codes without sign grow with their numbers.
    let (mut low, mut high) = (0, largest + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if number(middle) <= magnitude { low = middle } else { high = middle }
    }
    let (below, above) = (magnitude - number(low), number(high) - magnitude);
    // An even code has an even mantissa, and the one beyond the largest continues the count.
    assert!(mantissa > 0);
    let nearest = if below < above || below == above && low % 2 == 0 { low } else { high };
    let code = if nearest > largest { beyond } else { nearest };
    if code == NAN { NAN } else { sign | code }
}

/// One element of the result, from that element of every input.
pub(crate) fn fold(data_type: DataType, op: ReduceOp, divisor: u64, elements: &[&[u8]]) -> Vec<u8> {
    /// Field `$at` of every element.
    macro_rules! read {
        ($number:ty, $at:expr) => {
            elements
                .iter()
                .map(|bytes| {
                    let field = &bytes[$at..][..size_of::<$number>()];
                    <$number>::from_ne_bytes(field.try_into().expect("one number"))
                })
                .collect::<Vec<$number>>()
        };
        ($number:ty) => {
            read!($number, 0)
        };
    }
    macro_rules! integers {
        ($integer:ty) => {{
            let values: Vec<i128> = read!($integer).into_iter().map(i128::from).collect();
            let signed = <$integer>::MIN != 0;
            (fold_integers(&values, op, divisor, <$integer>::BITS, signed) as $integer).to_ne_bytes().to_vec()
        }};
    }
    macro_rules! halves {
        ($half:ty) => {{
            let values: Vec<f32> = read!($half).into_iter().map(<$half>::to_f32).collect();
            <$half>::from_f32(fold_f32(&values, op, divisor)).to_ne_bytes().to_vec()
        }};
    }
    macro_rules! complex {
        ($fold:ident, $float:ty) => {{
            let (re, im) = (read!($float, 0), read!($float, size_of::<$float>()));
            let (mut x, mut y) = (re[0], im[0]);
            if op == ReduceOp::Prod {
                for (&u, &v) in re.iter().zip(&im).skip(1) {
                    (x, y) = (x * u - y * v, x * v + y * u);
                }
            } else {
                (x, y) = ($fold(&re, op, divisor), $fold(&im, op, divisor));
            }
            [x.to_ne_bytes(), y.to_ne_bytes()].concat()
        }};
    }
    macro_rules! pairs {
        ($value:ty, $is_nan:expr, $order:expr, $index:ty) => {{
            let (values, places) = (read!($value), read!($index, size_of::<$value>()));
            let pairs: Vec<_> = values.into_iter().zip(places.into_iter().map(i64::from)).collect();
            let (value, index) = pairs[winner(&pairs, $is_nan, $order, op)];
            let mut element = [&value.to_ne_bytes()[..], &(index as $index).to_ne_bytes()].concat();
            element.resize(data_type.size_bytes(), 0);
            element
        }};
    }
    match data_type {
        DataType::U8 => integers!(u8),
        DataType::U16 => integers!(u16),
        DataType::U32 => integers!(u32),
        DataType::U64 => integers!(u64),
        DataType::I8 => integers!(i8),
        DataType::I16 => integers!(i16),
        DataType::I32 => integers!(i32),
        DataType::I64 => integers!(i64),
        DataType::F16 => halves!(f16),
        DataType::BF16 => halves!(bf16),
        DataType::F32 => fold_f32(&read!(f32), op, divisor).to_ne_bytes().into(),
        DataType::F64 => fold_f64(&read!(f64), op, divisor).to_ne_bytes().into(),
        DataType::E4M3 | DataType::E5M2 => {
            let values: Vec<f32> = read!(u8).into_iter().map(|code| widen(data_type, code) as f32).collect();
            vec![narrow(data_type, fold_f32(&values, op, divisor).into())]
        }
        DataType::Bool => {
            vec![fold_truth(&read!(u8).into_iter().map(|byte| byte != 0).collect::<Vec<_>>(), op).into()]
        }
        DataType::Complex64 => complex!(fold_f32, f32),
        DataType::Complex128 => complex!(fold_f64, f64),
        DataType::F32I32 => pairs!(f32, f32::is_nan, |value| order_of_float(value.into()), i32),
        DataType::F64I32 => pairs!(f64, f64::is_nan, order_of_float, i32),
        DataType::I32I32 => pairs!(i32, |_| false, i128::from, i32),
        DataType::F64I64 => pairs!(f64, f64::is_nan, order_of_float, i64),
        DataType::I64I64 => pairs!(i64, |_| false, i128::from, i64),
        _ => panic!("no reference for {data_type}"),
    }
}

/// Whether two elements are the same to the bit, save for which NaN a NaN in them is.
pub(crate) fn same(data_type: DataType, a: &[u8], b: &[u8]) -> bool {
    let number = number_bytes(data_type);
    let (mut parts, mut others) = (a.chunks(number), b.chunks(number));
    let alike = |(a, b): (&[u8], &[u8])| a == b || is_nan_number(data_type, a) && is_nan_number(data_type, b);
    match data_type {
        DataType::Complex64 | DataType::Complex128 => parts.zip(others).all(alike),
        // Of a pair the value may be NaN; what follows it may not differ.
        _ => parts.next().zip(others.next()).is_some_and(alike) && parts.eq(others),
    }
}

/// The size of the number, or of each of the two, or of the value of a pair.
fn number_bytes(data_type: DataType) -> usize {
    match data_type {
        DataType::Complex64 | DataType::F32I32 | DataType::I32I32 => 4,
        DataType::Complex128 | DataType::F64I32 | DataType::F64I64 | DataType::I64I64 => 8,
        _ => data_type.size_bytes(),
    }
}

/// Whether an element is, or has in it, a NaN; integers never are.
pub(crate) fn is_nan(data_type: DataType, element: &[u8]) -> bool {
    let mut numbers = element.chunks(number_bytes(data_type));
    match data_type {
        DataType::Complex64 | DataType::Complex128 => numbers.any(|number| is_nan_number(data_type, number)),
        _ => numbers.next().is_some_and(|number| is_nan_number(data_type, number)),
    }
}

fn is_nan_number(data_type: DataType, number: &[u8]) -> bool {
    match data_type {
        DataType::F16 => f16::from_ne_bytes(number.try_into().expect("two bytes")).is_nan(),
        DataType::BF16 => bf16::from_ne_bytes(number.try_into().expect("two bytes")).is_nan(),
        DataType::E4M3 | DataType::E5M2 => widen(data_type, number[0]).is_nan(),
        DataType::F32 | DataType::Complex64 | DataType::F32I32 => {
            f32::from_ne_bytes(number.try_into().expect("four bytes")).is_nan()
        }
        DataType::F64 | DataType::Complex128 | DataType::F64I32 | DataType::F64I64 => {
            f64::from_ne_bytes(number.try_into().expect("eight bytes")).is_nan()
        }
        _ => false,
    }
}

/// The operators of a type.
pub(crate) fn operators(data_type: DataType) -> impl Iterator<Item = ReduceOp> {
    ReduceOp::ALL.iter().copied().filter(move |op| op.supports(data_type))
}

/// Pseudo-random numbers (xorshift64*): reproducible, and quick in a debug build.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Bytes of `count` elements: of floats mostly numbers of moderate size, so that sums round rather than overflow, one in
/// eight any bit pattern, and a few zeros of both signs, infinities and NaNs; of integers any; of pairs few different
/// values and places, so that there are ties. Some places have zeros in most inputs, for operators that ask for them.
pub(crate) fn elements(data_type: DataType, count: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count * data_type.size_bytes());
    for at in 0..count {
        let raw = random.next();
        let pattern = raw.rotate_left(17);
        let few = pattern as u8 & 3;
        match data_type {
            _ if at % 8 == 3 && raw >> 60 < 13 => bytes.extend(&[0; 16][..data_type.size_bytes()]),
            DataType::Complex64 => {
                (0..2).for_each(|part| push_number(DataType::F32, raw.rotate_left(part * 31), &mut bytes));
            }
            DataType::Complex128 => {
                (0..2).for_each(|part| push_number(DataType::F64, raw.rotate_left(part * 31), &mut bytes));
            }
            DataType::Bool => bytes.push([0, 1, raw as u8, 0x80][usize::from(few)]),
            DataType::F32I32 | DataType::F64I32 | DataType::F64I64 => {
                let value = [0.0, -0.0, 1.5, if raw & 7 == 0 { f64::NAN } else { -2.0 }][usize::from(few)];
                match data_type {
                    DataType::F32I32 => bytes.extend((value as f32).to_ne_bytes()),
                    _ => bytes.extend(value.to_ne_bytes()),
                }
                push_place(data_type, raw, &mut bytes);
            }
            DataType::I32I32 => {
                bytes.extend((i32::from(few) - 2).to_ne_bytes());
                push_place(data_type, raw, &mut bytes);
            }
            DataType::I64I64 => {
                bytes.extend(((i64::from(few) - 2) << 40).to_ne_bytes());
                push_place(data_type, raw, &mut bytes);
            }
            _ => push_number(data_type, raw, &mut bytes),
        }
    }
    bytes
}

fn push_number(data_type: DataType, raw: u64, bytes: &mut Vec<u8>) {
    let moderate = ((raw >> 40) as i32 - (1 << 23)) as f32 / 65536.0;
    let special =
        [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0, -1.0, 1e-40][raw as usize >> 8 & 7];
    let (any, value) = match raw & 31 {
        0..4 => (true, 0.0),
        4 => (false, special),
        _ => (false, moderate),
    };
    match data_type {
        DataType::F16 if !any => bytes.extend(f16::from_f32(value).to_ne_bytes()),
        DataType::BF16 if !any => bytes.extend(bf16::from_f32(value).to_ne_bytes()),
        DataType::F32 if !any => bytes.extend(value.to_ne_bytes()),
        DataType::F64 if !any => bytes.extend((f64::from(value) * 1.000_000_1).to_ne_bytes()),
        DataType::E4M3 | DataType::E5M2 if !any => bytes.push(narrow(data_type, f64::from(value) / 16.0)),
        _ => bytes.extend(&raw.rotate_left(17).to_ne_bytes()[..data_type.size_bytes()]),
    }
}

/// The place of a pair, and bits that mean nothing where there is room left.
fn push_place(data_type: DataType, raw: u64, bytes: &mut Vec<u8>) {
    let place = (raw >> 32) as i32 % 3;
    match data_type {
        DataType::F64I64 | DataType::I64I64 => bytes.extend((i64::from(place) << 33).to_ne_bytes()),
        _ => bytes.extend(place.to_ne_bytes()),
    }
    if data_type == DataType::F64I32 {
        bytes.extend((raw as u32).to_ne_bytes());
    }
}

/// What the bytes around an output are; they must still be that afterwards.
const GUARD: u8 = 0xa5;
/// Guard bytes on each side: more than any register is long.
const MARGIN: usize = 96;

/// A range of bytes at a chosen misalignment, with guards on both sides.
#[derive(Clone)]
pub(crate) struct Guarded {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Guarded {
    /// `misalignment` is from an address that is a multiple of 64.
    pub(crate) fn new(len: usize, misalignment: usize) -> Self {
        let bytes = vec![GUARD; len + 2 * MARGIN + 64 + misalignment];
        let start = MARGIN + (bytes.as_ptr().addr() + MARGIN).wrapping_neg() % 64 + misalignment;
        Self { bytes, start, len }
    }

    pub(crate) fn holding(content: &[u8], misalignment: usize) -> Self {
        let mut new = Self::new(content.len(), misalignment);
        let range = new.start..new.start + new.len;
        new.bytes[range].copy_from_slice(content);
        new
    }

    pub(crate) fn content(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    pub(crate) fn pointer(&mut self) -> *mut u8 {
        self.bytes[self.start..].as_mut_ptr()
    }

    pub(crate) fn guards_are_whole(&self) -> bool {
        let (before, rest) = self.bytes.split_at(self.start);
        before.iter().chain(&rest[self.len..]).all(|&byte| byte == GUARD)
    }
}

/// One run of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub data_type: DataType,
    /// `None` is a copy.
    pub op: Option<ReduceOp>,
    pub(crate) level: Level,
    pub outputs: usize,
    pub count: usize,
    pub divisor: u64,
    pub store: Store,
    /// Output j is `misalignment` times j + 1 off.
    pub misalignment: usize,
    /// The first outputs are the first inputs.
    pub in_place: bool,
}

impl Case {
    fn combine(&self) -> Combine {
        let best =
            self.op.map_or_else(|| Combine::copy(self.data_type), |op| Combine::reduce(self.data_type, op));
        best.with_level(self.level).expect("tests ask for available levels")
    }

    /// Runs the kernel on `inputs` and gives every output's bytes. Panics when a guard was touched, or an input
    /// that is no output.
    pub(crate) fn run(&self, inputs: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let bytes = self.count * self.data_type.size_bytes();
        let offset = |position: usize| self.misalignment * (position + 1) % 64;
        let shared = if self.in_place { self.outputs.min(inputs.len()) } else { 0 };
        let mut sources: Vec<_> = inputs
            .iter()
            .enumerate()
            .map(|(i, input)| Guarded::holding(&input[..bytes], offset(i)))
            .collect();
        let mut targets: Vec<_> = (shared..self.outputs).map(|j| Guarded::new(bytes, offset(j))).collect();
        let pointers: Vec<*mut u8> = sources.iter_mut().map(Guarded::pointer).collect();
        let outputs: Vec<*mut u8> =
            pointers[..shared].iter().copied().chain(targets.iter_mut().map(Guarded::pointer)).collect();
        let read: Vec<*const u8> = pointers.iter().map(|pointer| pointer.cast_const()).collect();
        // SAFETY: each pointer is to `bytes` bytes of a vector of its own that lives and is untouched during the
        // call; the first `shared` outputs are exactly inputs.
        unsafe { self.combine().run(&read, &outputs, self.count, self.divisor, self.store) };

        for guarded in sources.iter().chain(&targets) {
            assert!(guarded.guards_are_whole(), "bytes beyond the range were written: {self:?}");
        }
        for (source, input) in sources.iter().zip(inputs).skip(shared) {
            assert!(source.content() == &input[..bytes], "an input was written: {self:?}");
        }
        sources[..shared].iter().chain(&targets).map(|guarded| guarded.content().to_vec()).collect()
    }

    /// What every output should hold.
    pub(crate) fn expected(&self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let size = self.data_type.size_bytes();
        let Some(op) = self.op else { return inputs[0][..self.count * size].to_vec() };
        (0..self.count)
            .flat_map(|e| {
                let elements: Vec<&[u8]> = inputs.iter().map(|input| &input[e * size..][..size]).collect();
                fold(self.data_type, op, self.divisor, &elements)
            })
            .collect()
    }

    /// The first difference between an output and what it should hold, in words.
    pub(crate) fn difference(&self, expected: &[u8], output: &[u8]) -> Option<String> {
        let size = self.data_type.size_bytes();
        if expected.len() != output.len() {
            return Some(format!("{} bytes instead of {}", output.len(), expected.len()));
        }
        let pairs = expected.chunks_exact(size).zip(output.chunks_exact(size));
        let exact = self.op.is_none();
        pairs.enumerate().find_map(|(e, (right, ours))| {
            let equal = if exact { right == ours } else { same(self.data_type, right, ours) };
            (!equal).then(|| format!("element {e}: {ours:02x?} instead of {right:02x?}"))
        })
    }

    /// Runs and compares every output.
    pub(crate) fn check_against(&self, inputs: &[Vec<u8>], expected: &[u8]) {
        for (j, output) in self.run(inputs).iter().enumerate() {
            if let Some(difference) = self.difference(expected, output) {
                panic!("output {j}, {difference}; {} inputs, {self:?}", inputs.len());
            }
        }
    }
}
