//! What windlass's element types are called in Python.

use std::ffi::CStr;

use pyo3::prelude::*;
use windlass::DataType;

/// An element type's names elsewhere.
struct Row {
    /// windlass's name, by which the type is found: a row may be here before the type is.
    name: &'static str,
    /// NumPy's, JAX's and ml_dtypes'.
    numpy: &'static str,
    /// The buffer protocol's, where it has one.
    format: Option<&'static CStr>,
    /// DLPack's kind of number.
    dlpack: u8,
}

const fn row(name: &'static str, numpy: &'static str, format: Option<&'static CStr>, dlpack: u8) -> Row {
    Row { name, numpy, format, dlpack }
}

const ROWS: &[Row] = &[
    row("u8", "uint8", Some(c"B"), 1),
    row("u16", "uint16", Some(c"H"), 1),
    row("u32", "uint32", Some(c"I"), 1),
    row("u64", "uint64", Some(c"Q"), 1),
    row("i8", "int8", Some(c"b"), 0),
    row("i16", "int16", Some(c"h"), 0),
    row("i32", "int32", Some(c"i"), 0),
    row("i64", "int64", Some(c"q"), 0),
    row("f16", "float16", Some(c"e"), 2),
    row("bf16", "bfloat16", None, 4),
    row("f32", "float32", Some(c"f"), 2),
    row("f64", "float64", Some(c"d"), 2),
    row("bool", "bool", Some(c"?"), 6),
    row("complex64", "complex64", Some(c"Zf"), 5),
    row("complex128", "complex128", Some(c"Zd"), 5),
    row("e4m3", "float8_e4m3fn", None, 10),
    row("e5m2", "float8_e5m2", None, 12),
];

fn row_of(data_type: DataType) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == data_type.name())
}

/// The buffer protocol's name.
pub(crate) fn format(data_type: DataType) -> Option<&'static CStr> {
    row_of(data_type)?.format
}

/// DLPack's kind of number and bits.
pub(crate) fn to_dlpack(data_type: DataType) -> Option<(u8, u8)> {
    Some((row_of(data_type)?.dlpack, (data_type.size_bytes() * 8) as u8))
}

/// The type of a DLPack tensor's elements.
pub(crate) fn from_dlpack(kind: u8, bits: u8, lanes: u16) -> Option<DataType> {
    let rows = ROWS.iter().filter(|row| row.dlpack == kind && lanes == 1);
    rows.filter_map(|row| row.name.parse().ok()).find(|t: &DataType| t.size_bytes() * 8 == usize::from(bits))
}

/// The type of a buffer's elements. `l` is 4 bytes here and 8 there, so the size decides.
pub(crate) fn from_format(format: &[u8], size_bytes: usize) -> Option<DataType> {
    let native = if cfg!(target_endian = "little") { b'<' } else { b'>' };
    let code = match format {
        [order, code @ ..] if [b'@', b'=', native].contains(order) => code,
        // One byte has no order.
        [b'<' | b'>' | b'!' | b'|', code @ ..] if size_bytes == 1 => code,
        code => code,
    };
    let bits = 8 * size_bytes;
    match code {
        // By far the most frequent one is spared the search.
        b"f" if size_bytes == 4 => Some(DataType::F32),
        [b'b' | b'h' | b'i' | b'l' | b'q' | b'n'] => named(&format!("i{bits}")),
        [b'B' | b'H' | b'I' | b'L' | b'Q' | b'N'] => named(&format!("u{bits}")),
        b"e" | b"f" | b"d" => named(&format!("f{bits}")),
        b"?" => named("bool"),
        b"Zf" => named("complex64"),
        b"Zd" => named("complex128"),
        _ => None,
    }
}

/// The type of windlass's or NumPy's name.
pub(crate) fn named(name: &str) -> Option<DataType> {
    let row = ROWS.iter().find(|row| row.numpy == name);
    row.map_or(name, |row| row.name).parse().ok()
}

/// The type that a `dtype` argument names: a string, NumPy's dtype or type, or torch's dtype.
pub(crate) fn of(object: &Bound<'_, PyAny>) -> Option<DataType> {
    if let Ok(name) = object.extract::<&str>() {
        return named(name);
    }
    let attribute = ["name", "__name__"].into_iter().find_map(|name| object.getattr(name).ok());
    let name = attribute.map_or_else(|| object.str().map(Bound::into_any), Ok).ok()?;
    let name: String = name.extract().ok()?;
    named(name.strip_prefix("torch.").unwrap_or(&name))
}

/// The names that `dtype` may have, for those who gave another one.
pub(crate) fn names() -> String {
    DataType::ALL.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ")
}
