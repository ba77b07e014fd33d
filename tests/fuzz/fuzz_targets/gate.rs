#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| mogok_fuzz::gate::run(data));
