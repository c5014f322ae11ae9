// node transcribe.mjs FOLDER DTYPE LANGUAGE WAV...: what transformers.js hears in each file, as a JSON list of texts.
import { readFileSync } from 'node:fs';
import { basename, dirname } from 'node:path';

import { env, pipeline } from '@huggingface/transformers';
import wavefile from 'wavefile';

function samplesOf(path) {
  const wav = new wavefile.WaveFile(readFileSync(path));
  wav.toBitDepth('32f');
  return wav.getSamples(false, Float32Array);
}

const [folder, dtype, language, ...paths] = process.argv.slice(2);
env.localModelPath = dirname(folder);
env.allowRemoteModels = false;
const recogniser = await pipeline('automatic-speech-recognition', basename(folder), { dtype });
const texts = [];
for (const path of paths) {
  const { text } = await recogniser(samplesOf(path), { language, task: 'transcribe' });
  texts.push(text.trim());
}
console.log(JSON.stringify(texts));
