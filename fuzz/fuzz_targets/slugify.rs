#![no_main]

#[path = "../properties.rs"]
#[expect(dead_code, reason = "a target has one property")]
mod properties;

libfuzzer_sys::fuzz_target!(|input: &[u8]| properties::slugify(input));
