#![doc = include_str!("../README.md")]

pub mod storage;

mod adapter;
mod describe;
mod engine;
mod error;
mod id;
mod limits;
mod request;
mod session;
mod shared_adapter;
mod signal;

pub use adapter::{Adapter, Capabilities, Health, Role};
pub use describe::describe_metrics;
pub use engine::{Engine, EngineAdapter};
pub use error::{Applied, Error, ErrorKind, Result};
pub use id::{
    EventId, InstanceId, Position, Principal, PrincipalKey, RpcId, SessionId, SessionKey, StreamId,
    WaiterToken,
};
pub use limits::{Limits, LimitsBuilder, MAX_SIGNAL_BYTES, MAX_STATE_BYTES};
pub use request::{
    Answer, ClientRequestAdapter, Delivery, NewClientRequest, Outcome, OutcomeKind, PendingRequest,
};
pub use session::{
    Ack, Cancelled, Count, EndReason, Entered, Replay, Revocation, Session, SessionAdapter,
    SessionRecord, Stats, StreamWriter, Tail, TailEvent, TailFrom,
};
pub use signal::{Channel, Signal, SignalAdapter};
