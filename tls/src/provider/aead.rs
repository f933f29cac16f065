//! The encryption of records (RFC 8446, section 5.2).

use aead::inout::InOutBuf;
use aead::{AeadInOut, KeyInit, KeySizeUser, Tag};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use alloc::boxed::Box;
use chacha20poly1305::ChaCha20Poly1305;
use core::marker::PhantomData;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter,
    Nonce, OutboundOpaqueMessage, OutboundPlainMessage, PrefixedPayload, Tls13AeadAlgorithm,
    UnsupportedOperationError, make_tls13_aad,
};
use rustls::{ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion};

/// The length of a tag and of a nonce, for all three.
const TAG: usize = 16;

pub static CHACHA20_POLY1305: Algorithm<ChaCha20Poly1305> = Algorithm(PhantomData);
pub static AES_128_GCM: Algorithm<Aes128Gcm> = Algorithm(PhantomData);
pub static AES_256_GCM: Algorithm<Aes256Gcm> = Algorithm(PhantomData);

/// What a cipher must be.
pub trait Cipher: AeadInOut + KeyInit + KeySizeUser + Send + Sync + 'static {}

impl<C: AeadInOut + KeyInit + KeySizeUser + Send + Sync + 'static> Cipher for C {}

/// An algorithm for keys of connections.
pub struct Algorithm<C>(PhantomData<fn() -> C>);

impl<C: Cipher> Algorithm<C> {
    fn keyed(&self, key: AeadKey, iv: Iv) -> Box<Keyed<C>> {
        let cipher = C::new_from_slice(key.as_ref()).expect("a key of `key_len` bytes");
        Box::new(Keyed { cipher, iv })
    }
}

impl<C: Cipher> Tls13AeadAlgorithm for Algorithm<C> {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        self.keyed(key, iv)
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        self.keyed(key, iv)
    }

    fn key_len(&self) -> usize {
        C::key_size()
    }

    fn extract_keys(
        &self,
        _: AeadKey,
        _: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Err(UnsupportedOperationError)
    }
}

/// A cipher with its key, for one direction of a connection.
struct Keyed<C> {
    cipher: C,
    iv: Iv,
}

impl<C: Cipher> Keyed<C> {
    fn nonce(&self, sequence: u64) -> aead::Nonce<C> {
        let nonce = Nonce::new(&self.iv, sequence).0;
        nonce.as_slice().try_into().expect("all nonces of TLS have 12 bytes")
    }
}

impl<C: Cipher> MessageEncrypter for Keyed<C> {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        sequence: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        let length = self.encrypted_payload_len(message.payload.len());
        let mut payload = PrefixedPayload::with_capacity(length);
        payload.extend_from_chunks(&message.payload);
        payload.extend_from_slice(&[u8::from(message.typ)]);
        let tag = self
            .cipher
            .encrypt_inout_detached(
                &self.nonce(sequence),
                &make_tls13_aad(length),
                InOutBuf::from(payload.as_mut()),
            )
            .map_err(|_| Error::EncryptError)?;
        payload.extend_from_slice(&tag);
        Ok(OutboundOpaqueMessage::new(
            ContentType::ApplicationData,
            // Records have the number of the version before, for the sake of middleboxes.
            ProtocolVersion::TLSv1_2,
            payload,
        ))
    }

    fn encrypted_payload_len(&self, length: usize) -> usize {
        length + 1 + TAG
    }
}

impl<C: Cipher> MessageDecrypter for Keyed<C> {
    fn decrypt<'a>(
        &mut self,
        mut message: InboundOpaqueMessage<'a>,
        sequence: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let payload = &mut message.payload;
        let aad = make_tls13_aad(payload.len());
        let plain = payload.len().checked_sub(TAG).ok_or(Error::DecryptError)?;
        let (text, tag) = payload.split_at_mut(plain);
        let tag = Tag::<C>::try_from(&*tag).map_err(|_| Error::DecryptError)?;
        self.cipher
            .decrypt_inout_detached(&self.nonce(sequence), &aad, InOutBuf::from(text), &tag)
            .map_err(|_| Error::DecryptError)?;
        payload.truncate(plain);
        message.into_tls13_unpadded_message()
    }
}
