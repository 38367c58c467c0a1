// Elements moved as they are: the bits of a 4-byte element (f32 or u32), or an f16; four at a time with feature `vec4`.

@if(f16) alias word = f16;
@else alias word = u32;

@if(vec4) alias words = vec4<word>;
@else alias words = word;

// A constant, given as f32, in an element's representation.
@if(f16) fn word_of(value: f32) -> word { return f16(value); }
@else fn word_of(value: f32) -> word { return bitcast<u32>(value); }
