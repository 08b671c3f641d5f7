//! SSLRequest is 36 bytes, is read as one, and repeats nothing of an answer but its 9 first bytes
//! and MariaDB's 4.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::mysql::Answer;

fuzz_target!(|payload: &[u8]| {
    let Ok(answer) = Answer::parse(payload) else {
        return;
    };
    let request = match &answer {
        Answer::SslRequest(request) => request.clone(),
        Answer::Response(response) => response.ssl_request(),
    };
    let bytes = request.bytes();
    assert_eq!((bytes.len(), &bytes[..4]), (36, &[32, 0, 0, 1][..]));
    assert_eq!(bytes[5], payload[1] | 8);
    assert_eq!(bytes[6..13], payload[2..9]);
    assert_eq!(bytes[13..32], [0; 19]);
    assert_eq!(bytes[32..], payload[28..32]);
    assert_eq!(Answer::parse(&bytes[4..]), Ok(Answer::SslRequest(request)));
});
