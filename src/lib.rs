pub mod ops;
pub mod rng;
