//! Splitting what an agent sends changes nothing of what its last words are, and only these are
//! COM_QUIT.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Progress,
    mysql::{Answer, Authentication, FirstWords, Goodbye},
};

const GREETING: &[u8] = b"\x36\0\0\0\x0a5.5.2-m2\0\x0b\0\0\0dvH@I-CJ\0\xff\xff\x08\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0*4d|cZwk4^]:\0";
const ANSWER: [u8; 36] =
    *b"\x05\xa2\0\0\0\0\0\x01\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0pam\0";

fuzz_target!(|input: (bool, u16, &[u8])| {
    let (compressed, cut, stream) = input;
    let (first, second) = stream.split_at(stream.len().min(cut.into()));
    let mut whole = watch(compressed);
    whole.watch(stream);
    let mut pieces = watch(compressed);
    pieces.watch(first);
    pieces.watch(second);
    assert_eq!(pieces.said(), whole.said());
    assert!(!whole.said() || stream.ends_with(&[1, 0, 0, 0, 1]));
});

fn watch(compressed: bool) -> Goodbye {
    let Ok(Progress::Done((FirstWords::Greeting(greeting), _))) = FirstWords::parse(GREETING)
    else {
        panic!("a greeting");
    };
    let mut answer = [&ANSWER[..], &[0]].concat();
    answer[0] |= if compressed { 0x20 } else { 0 };
    let Ok(Answer::Response(response)) = Answer::parse(&answer) else {
        panic!("an answer");
    };
    Authentication::inside_tls(&greeting, response).goodbye()
}
