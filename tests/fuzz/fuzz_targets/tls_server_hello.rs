//! A decision on the beginning of a stream stands; and an alert is the record that was sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Progress,
    tls::{RecordGuard, ServerFirst},
};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    let whole = ServerFirst::parse(stream);
    match ServerFirst::parse(&stream[..stream.len().min(cut.into())]) {
        Ok(Progress::NeedMore) => {}
        decided => assert_eq!(decided, whole),
    }
    if let Ok(Progress::Done(ServerFirst::Alert(alert))) = whole {
        let record = alert.to_record();
        assert_eq!(record[5..], stream[5..7]);
        assert_eq!(RecordGuard::new().check(&record), Ok(()));
    }
});
