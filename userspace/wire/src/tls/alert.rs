//! Alerts (RFC 8446 §6, RFC 5246 §7.2): how a peer says that it does not go on.

use super::record;

/// Alert description "access_denied" (RFC 8446 §6.2): a valid certificate or PSK was received,
/// but access control forbids going on.
pub const ACCESS_DENIED: u8 = 49;

/// Alert description "protocol_version" (RFC 8446 §6.2): the version that the peer offers is
/// recognised but not supported.
pub const PROTOCOL_VERSION: u8 = 70;

/// An alert that is not encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alert {
    /// 1: warning, 2: fatal. TLS 1.3 tells by the description alone.
    pub level: u8,
    /// The reason; [`alert_name`] has its name.
    pub description: u8,
}

impl Alert {
    /// The alert as a whole record.
    pub const fn to_record(self) -> [u8; 7] {
        [record::ALERT, 3, 3, 0, 2, self.level, self.description]
    }
}

/// A fatal alert as a whole record.
pub const fn fatal_alert(description: u8) -> [u8; 7] {
    let level = 2;
    Alert { level, description }.to_record()
}

/// IANA's name of an alert description, those of TLS 1.2 that TLS 1.3 dropped included.
pub const fn alert_name(description: u8) -> Option<&'static str> {
    Some(match description {
        0 => "close_notify",
        10 => "unexpected_message",
        20 => "bad_record_mac",
        21 => "decryption_failed",
        22 => "record_overflow",
        30 => "decompression_failure",
        40 => "handshake_failure",
        41 => "no_certificate",
        42 => "bad_certificate",
        43 => "unsupported_certificate",
        44 => "certificate_revoked",
        45 => "certificate_expired",
        46 => "certificate_unknown",
        47 => "illegal_parameter",
        48 => "unknown_ca",
        ACCESS_DENIED => "access_denied",
        50 => "decode_error",
        51 => "decrypt_error",
        60 => "export_restriction",
        PROTOCOL_VERSION => "protocol_version",
        71 => "insufficient_security",
        80 => "internal_error",
        86 => "inappropriate_fallback",
        90 => "user_canceled",
        100 => "no_renegotiation",
        109 => "missing_extension",
        110 => "unsupported_extension",
        111 => "certificate_unobtainable",
        112 => "unrecognized_name",
        113 => "bad_certificate_status_response",
        115 => "unknown_psk_identity",
        116 => "certificate_required",
        120 => "no_application_protocol",
        121 => "ech_required",
        _ => return None,
    })
}
