// node validate.js head.glb: the Khronos validator's report as json.
const fs = require("fs");
const validator = require("gltf-validator");

validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[2]))).then(
  (report) => console.log(JSON.stringify(report)),
  (reason) => { console.error(String(reason)); process.exit(1); });
