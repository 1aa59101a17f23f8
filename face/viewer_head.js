"use strict";
const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const bytes = text => {
  const chars = atob(text), out = new Uint8Array(chars.length);
  for (let i = 0; i < out.length; i++) out[i] = chars.charCodeAt(i);
  return out;
};
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// ---------------------------------------------------------------- the head: unpacked once, posed for each picture

/** What Python's zlib packed (RFC 1951 in RFC 1950), `size` bytes. Browsers unpack it themselves only since 2023. */
function inflate(packed, size) {
  const out = new Uint8Array(size);
  let at = 2, filled = 0, held = 0, bits = 0;                          // behind zlib's header; bits not used yet
  const take = count => {
    for (; bits < count; bits += 8) held |= packed[at++] << bits;
    const value = held & (1 << count) - 1;
    held >>>= count;
    bits -= count;
    return value;
  };
  const code = lengths => {                                            // how many of each length, symbols by length
    const counts = new Uint16Array(16), symbols = [];
    for (let length = 1; length < 16; length++)
      lengths.forEach((each, symbol) => { if (each === length) { symbols.push(symbol); counts[length]++; } });
    return {counts, symbols};
  };
  const symbol = ({counts, symbols}) => {
    for (let length = 1, word = 0, first = 0, index = 0; length < 16; length++) {
      word = word << 1 | take(1);
      if (word < first + counts[length]) return symbols[index + word - first];
      index += counts[length];
      first = first + counts[length] << 1;
    }
    throw new Error("the head in this page is damaged");
  };
  const dynamic = () => {
    const [literals, distances, steps] = [take(5) + 257, take(5) + 1, take(4) + 4], given = new Array(19).fill(0);
    const order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    for (let i = 0; i < steps; i++) given[order[i]] = take(3);
    const lengths = [], short = code(given);
    while (lengths.length < literals + distances) {
      const next = symbol(short);
      const [each, times] = next < 16 ? [next, 1] : next === 16 ? [lengths[lengths.length - 1], 3 + take(2)]
        : [0, next === 17 ? 3 + take(3) : 11 + take(7)];
      for (let i = 0; i < times; i++) lengths.push(each);
    }
    return [code(lengths.slice(0, literals)), code(lengths.slice(literals))];
  };
  for (let last = 0; !last;) {
    last = take(1);
    const kind = take(2);
    if (kind === 0) {                                                  // stored as it is, from the next byte on
      const count = packed[at] | packed[at + 1] << 8;
      out.set(packed.subarray(at + 4, at + 4 + count), filled);
      [at, filled, held, bits] = [at + 4 + count, filled + count, 0, 0];
      continue;
    }
    const fixed = Array.from({length: 288}, (_, i) => i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8);
    const [literals, distances] = kind === 2 ? dynamic() : [code(fixed), code(new Array(30).fill(5))];
    for (let next; (next = symbol(literals)) !== 256;) {
      if (next < 256) { out[filled++] = next; continue; }
      const i = next - 257, more = i === 28 ? 0 : Math.max((i >> 2) - 1, 0);
      let count = i === 28 ? 258 : (i < 4 ? i : 4 + (i & 3) << more) + 3 + take(more);
      const far = symbol(distances), further = Math.max((far >> 1) - 1, 0);
      const back = (far < 2 ? far : 2 + (far & 1) << further) + 1 + take(further);
      for (; count; count--, filled++) out[filled] = out[filled - back];
    }
  }
  return out;
}

/** The mesh of viewer.pack_head. Typed arrays have the machine's byte order: little-endian wherever browsers run. */
function unpackHead({vertices, triangles, moves, step, low, size, packed}) {
  const {buffer} = inflate(bytes(packed), size), Index = vertices > 65535 ? Uint32Array : Uint16Array;
  let at = 0;
  const take = (Type, count) => new Type(buffer.slice(at, at += count * Type.BYTES_PER_ELEMENT));
  const rest = Float32Array.from(take(Uint16Array, 3 * vertices), (value, i) => low[i % 3] + step * value);
  const faces = take(Index, 3 * triangles), counts = take(Index, data.names.length);
  const moved = take(Index, moves), deltas = take(Int16Array, 3 * moves), paint = take(Uint8Array, 4 * vertices);
  const shapes = [];
  for (let shape = 0, start = 0; shape < counts.length; start += counts[shape++]) {
    for (let i = start + 1; i < start + counts[shape]; i++) moved[i] += moved[i - 1];      // gaps -> vertices
    shapes.push([start, start + counts[shape]]);
  }
  const linear = value => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
  const colors = Float32Array.from(paint, (value, i) => i % 4 === 3 ? value / 255 : linear(value / 255));
  return {vertices, step, rest, faces, shapes, moved, deltas, colors, moves,
          positions: new Float32Array(3 * vertices), normals: new Float32Array(3 * vertices)};
}

/** positions = rest + sum of weight * shape over the shapes with a weight; normals from the triangles of a vertex. */
function pose(head, weights) {
  const {positions, normals, faces, shapes, moved, deltas, step, moves} = head;
  positions.set(head.rest);
  shapes.forEach(([start, end], shape) => {
    const weight = weights[shape] * step;
    if (!weight) return;
    for (let i = start; i < end; i++) {
      const at = 3 * moved[i];
      positions[at] += weight * deltas[i];
      positions[at + 1] += weight * deltas[moves + i];
      positions[at + 2] += weight * deltas[2 * moves + i];
    }
  });
  normals.fill(0);
  for (let i = 0; i < faces.length; i += 3) {
    const a = 3 * faces[i], b = 3 * faces[i + 1], c = 3 * faces[i + 2];
    const x = positions[a], y = positions[a + 1], z = positions[a + 2];
    const ux = positions[b] - x, uy = positions[b + 1] - y, uz = positions[b + 2] - z;
    const vx = positions[c] - x, vy = positions[c + 1] - y, vz = positions[c + 2] - z;
    const nx = uy * vz - uz * vy, ny = uz * vx - ux * vz, nz = ux * vy - uy * vx;      // length: twice the area
    normals[a] += nx; normals[a + 1] += ny; normals[a + 2] += nz;
    normals[b] += nx; normals[b + 1] += ny; normals[b + 2] += nz;
    normals[c] += nx; normals[c + 1] += ny; normals[c + 2] += nz;
  }
}

const VERTEX = `
attribute vec3 position, normal; attribute vec4 paint;
uniform mat3 turn; uniform vec3 centre; uniform vec4 lens; uniform vec2 fade;
varying vec3 spot, facing; varying vec4 tint; varying float cover;
void main() {
  spot = turn * (position - centre);
  facing = turn * normalize(normal);
  tint = paint;
  cover = smoothstep(fade.x, fade.y, position.y);                    // the neck ends softly
  float depth = lens.z - spot.z, near = lens.z - lens.w, far = lens.z + lens.w;
  gl_Position = vec4(spot.xy * lens.xy, (depth * (far + near) - 2. * far * near) / (far - near), depth);
}`;
const FRAGMENT = `
#extension GL_OES_standard_derivatives : enable
precision highp float;
uniform vec4 lens;
varying vec3 spot, facing; varying vec4 tint; varying float cover;
const vec3 KEY = vec3(.2442, .4395, .8640);                          // (0.25, 0.45, 0.86) at length 1
void main() {
  vec3 right = dFdx(spot), up = dFdy(spot);                          // the depth of a triangle seen edge-on is a guess:
  if (abs(right.z) + abs(up.z) > 20. * (abs(right.x) + abs(up.y))) discard;    // it would shine through what is before
  vec3 n = normalize(facing), eye = normalize(vec3(0, 0, lens.z) - spot);
  if (dot(n, eye) < -.3) n = -n;                                     // inside of an open part; slivers have no side
  float gloss = tint.a;
  vec3 wrap = vec3(.30, .16, .10) * (1. - gloss);                    // light that went under the skin comes out red
  vec3 key = clamp((dot(n, KEY) + wrap) / (1. + wrap), 0., 1.);
  vec3 sky = mix(vec3(.20, .17, .16), vec3(.36, .40, .46), n.y * .5 + .5);
  float shine = pow(max(dot(n, normalize(KEY + eye)), 0.), mix(14., 60., gloss));
  float rim = pow(1. - max(dot(n, eye), 0.), 3.) * smoothstep(-.2, .8, n.y + .4 * abs(n.x));
  vec3 light = tint.rgb * (key * .76 + sky) + shine * gloss * gloss * .8 + rim * .16 * (.3 + tint.rgb);
  vec3 shown = mix(light * 12.92, 1.055 * pow(light, vec3(1. / 2.4)) - .055, step(.0031308, light));
  gl_FragColor = vec4(clamp(shown, 0., 1.), 1.) * cover;
}`;

/** WebGL state for a head on a canvas. Returns draw(width, height), which renders the head's current pose. */
function makeRenderer(gl, head) {
  gl.getExtension("OES_standard_derivatives");
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost())
    throw new Error(`the shader does not link: ${gl.getProgramInfoLog(program)}`);
  gl.useProgram(program);
  const attribute = (name, size, values) => {
    const buffer = gl.createBuffer(), place = gl.getAttribLocation(program, name);
    const upload = () => {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
    };
    upload();
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, size, gl.FLOAT, false, 0, 0);
    return upload;
  };
  const uploads = [attribute("position", 3, head.positions), attribute("normal", 3, head.normals)];
  attribute("paint", 4, head.colors);
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, head.faces, gl.STATIC_DRAW);
  gl.enable(gl.DEPTH_TEST);
  gl.getExtension("OES_element_index_uint");                           // 32-bit indices
  const indexType = head.faces.BYTES_PER_ELEMENT === 4 ? gl.UNSIGNED_INT : gl.UNSIGNED_SHORT;
  const place = name => gl.getUniformLocation(program, name);
  const turn = place("turn"), lens = place("lens");

  const low = head.rest.slice(0, 3), high = head.rest.slice(0, 3);
  head.rest.forEach((value, i) => {
    low[i % 3] = Math.min(low[i % 3], value);
    high[i % 3] = Math.max(high[i % 3], value);
  });
  const [width, height, depth] = high.map((value, axis) => value - low[axis]);
  const middle = [low[0] + .5 * width, low[1] + .53 * height, low[2] + .5 * depth];        // more air above than below
  const reach = Math.hypot(width, height, depth) * .6;
  const distance = 6 * reach;                                        // a long lens: a near one makes the nose large
  gl.uniform3fv(place("centre"), middle);
  gl.uniform2f(place("fade"), low[1] + .005 * height, low[1] + .1 * height);
  return (columns, rows) => {
    const aspect = columns / rows, half = Math.max(height, width / aspect) * .52 / view.zoom;
    const [cy, sy, cp, sp] = [Math.cos(view.yaw), Math.sin(view.yaw), Math.cos(view.pitch), Math.sin(view.pitch)];
    gl.viewport(0, 0, columns, rows);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    uploads.forEach(upload => upload());
    gl.uniformMatrix3fv(turn, false, [cy, sp * sy, -cp * sy, 0, cp, sp, sy, -sp * cy, cp * cy]);
    gl.uniform4f(lens, distance / half / aspect, distance / half, distance, reach);
    gl.drawElements(gl.TRIANGLES, head.faces.length, indexType, 0);
  };
}
