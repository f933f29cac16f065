//! The backend's engine, asked by a guest that speaks the protocol by hand.

mod guest;
mod hostile;
mod passive;
mod streams;
