//! Messages on the wire: what a caller sends is read apart from the framing, so that one message
//! that is no Protobuf does not end a stream.

use std::marker::PhantomData;

use prost::{DecodeError, Message};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::ProstEncoder;

/// Reads requests of the type `Q`, each for itself, and writes answers of the type `A`.
pub(super) struct Messages<Q, A>(PhantomData<(Q, A)>);

impl<Q, A> Messages<Q, A> {
    pub(super) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<Q, A> Codec for Messages<Q, A>
where
    Q: Message + Default + Send + 'static,
    A: Message + Send + 'static,
{
    type Encode = A;
    type Decode = Result<Q, DecodeError>;
    type Encoder = ProstEncoder<A>;
    type Decoder = Each<Q>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Each(PhantomData)
    }
}

pub(super) struct Each<Q>(PhantomData<Q>);

impl<Q: Message + Default> Decoder for Each<Q> {
    type Item = Result<Q, DecodeError>;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let read = Q::decode(&mut *bytes);
        // What follows is the next message's, wherever the reading of this one ended.
        bytes::Buf::advance(bytes, bytes::Buf::remaining(bytes));
        Ok(Some(read))
    }
}
