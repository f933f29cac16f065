//! The backend's engine, asked by a guest that speaks the protocol by hand.

#[allow(unsafe_code, reason = "gives pages back to the fake machine")]
mod guest;
mod hostile;
mod passive;
mod streams;
