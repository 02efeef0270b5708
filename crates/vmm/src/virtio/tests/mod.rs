//! Devices behind their registers, with good and bad drivers.

mod block;
mod driver;
mod hostile;
mod net;
mod registers;
mod rng;
mod serve;
mod slot;
mod volume;
