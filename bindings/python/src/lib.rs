//! The extension module of the Python package `windlass`: the runtime's public API, with Python's memory.
//!
//! Operations read and write the memory of whatever object lends it ([`mod@array`]), and keep it exported until they end ([`keep`]). Nothing is copied. Nothing here is called by a thread of the runtime while it holds one of its locks, and no such
//! thread waits for the interpreter, but to call an [`operator`] that is written in Python.

mod array;
mod buffer;
mod call;
mod communicator;
mod device;
mod dlpack;
mod dtype;
mod error;
mod exchange;
mod exit;
mod faces;
mod keep;
mod list;
mod operation;
mod operator;
mod registration;
mod stack;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    use pyo3::prelude::*;
    use pyo3::types::PyTuple;

    #[pymodule_export]
    use crate::buffer::Buffer;
    #[pymodule_export]
    use crate::communicator::{Communicator, init};
    #[pymodule_export]
    use crate::device::{Device, DeviceBuffer};
    #[pymodule_export]
    use crate::exit::at_exit;
    #[pymodule_export]
    use crate::list::ByRank;
    #[pymodule_export]
    use crate::operation::{Bell, Operation};
    #[pymodule_export]
    use crate::operator::Operator;
    #[pymodule_export]
    use crate::registration::Registration;

    /// The names of the runtime's tables, for what is made of them in Python.
    #[pymodule_init]
    fn tables(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        let names = |names: Vec<&'static str>| PyTuple::new(py, names);
        module.add("OPERATORS", names(windlass::ReduceOp::ALL.iter().map(|op| op.name()).collect())?)?;
        module.add("DTYPES", names(windlass::DataType::ALL.iter().map(|t| t.name()).collect())?)?;
        module.add("COLLECTIVES", names(windlass::Collective::ALL.iter().map(|c| c.name()).collect())?)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
