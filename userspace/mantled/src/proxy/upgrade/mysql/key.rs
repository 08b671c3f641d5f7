//! The proxy's own RSA key, with which agents encrypt passwords for a server that is reached
//! through TLS.
//!
//! It is generated when the first agent asks for one, lives as long as the process, and is kept
//! in memory only. It protects nothing that crosses a wire: between agent and proxy lies this
//! host alone.

use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    rsa::{KeySize, OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, PrivateDecryptingKey},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use crate::error::{Cause, Failure};

static OWN: OnceCell<Key> = OnceCell::const_new();

/// The key. Who asks first waits until it is generated, on a thread that serves no session.
pub(super) async fn own() -> Result<&'static Key, Failure> {
    OWN.get_or_try_init(|| async {
        tokio::task::spawn_blocking(Key::generate)
            .await
            .ok()
            .flatten()
            .ok_or_else(|| Failure::new(Cause::Internal, "no RSA key could be generated"))
    })
    .await
}

/// A key pair.
#[derive(Debug)]
pub(super) struct Key {
    private: OaepPrivateDecryptingKey,
    pem: Vec<u8>,
}

impl Key {
    fn generate() -> Option<Self> {
        // 2048 bits is what MySQL's own servers generate, so every client takes it.
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).ok()?;
        let public: PublicKeyX509Der<'_> = private.public_key().as_der().ok()?;
        Some(Self {
            pem: pem(public.as_ref()),
            private: OaepPrivateDecryptingKey::new(private).ok()?,
        })
    }

    /// The public half, as MySQL sends it.
    pub(super) fn pem(&self) -> &[u8] {
        &self.pem
    }

    /// What was encrypted with the public half; None where it was not. MySQL uses OAEP as
    /// OpenSSL does by default, which is with SHA-1.
    pub(super) fn decrypt(&self, ciphertext: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let mut room = Zeroizing::new(vec![0; self.private.min_output_size()]);
        let text = self
            .private
            .decrypt(&OAEP_SHA1_MGF1SHA1, ciphertext, &mut room, None)
            .ok()?;
        Some(Zeroizing::new(text.to_vec()))
    }
}

/// A SubjectPublicKeyInfo in the textual encoding of RFC 7468 §13.
fn pem(der: &[u8]) -> Vec<u8> {
    let mut pem = b"-----BEGIN PUBLIC KEY-----\n".to_vec();
    for line in BASE64_STANDARD.encode(der).as_bytes().chunks(64) {
        pem.extend_from_slice(line);
        pem.push(b'\n');
    }
    pem.extend_from_slice(b"-----END PUBLIC KEY-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rsa::{OaepPublicEncryptingKey, PublicEncryptingKey};

    use super::*;

    #[test]
    fn who_reads_the_pem_can_encrypt_for_the_key() {
        let key = Key::generate().unwrap();
        let text = String::from_utf8(key.pem.clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.first(), Some(&"-----BEGIN PUBLIC KEY-----"));
        assert_eq!(lines.last(), Some(&"-----END PUBLIC KEY-----"));
        let der = BASE64_STANDARD
            .decode(lines[1..lines.len() - 1].concat())
            .unwrap();
        let public = PublicEncryptingKey::from_der(&der).unwrap();
        let public = OaepPublicEncryptingKey::new(public).unwrap();
        let mut room = vec![0; public.ciphertext_size()];
        let ciphertext = public
            .encrypt(&OAEP_SHA1_MGF1SHA1, b"secret\0", &mut room, None)
            .unwrap();
        assert_eq!(key.decrypt(ciphertext).unwrap().as_slice(), b"secret\0");
        assert!(key.decrypt(&[7; 256]).is_none());
        assert!(key.decrypt(b"").is_none());
    }
}
