-- Sample catalog: well-known public models for machines that run ComfyUI.
--
-- Inserts into public.models, which must exist. The file can be applied more
-- than once: rows whose id exists are left unchanged.
--
-- download_url   public URL of the file
-- file_size_gb   decimal gigabytes (10^9 bytes), rounded; NULL if not known
-- hash           sha256 in hex if it is known for certain, otherwise NULL. The
--                values of flux-dev and sdxl-base are fixed; that of flux-dev
--                has 32 digits, so it is not a sha256.
-- auth_required  true if the download requires an account; auth_provider
--                says of which kind
-- save_path      where the file is saved, relative to ComfyUI's models/ folder
-- dependencies   ids of the other files that this one requires. A LoRA,
--                ControlNet or IP-adapter lists no base model, because any
--                model of the right family works.

INSERT INTO public.models
    (id, name,
     download_url,
     file_size_gb, hash,
     auth_required, auth_provider, save_path,
     dependencies, description)
VALUES

-- Checkpoints: Stable Diffusion 1.5 and XL

    ('sd15', 'v1-5-pruned-emaonly-fp16.safetensors',
     'https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors',
     2.13, 'e9476a13728cd75d8279f6ec8bad753a66a1957ca375a1464dc63b37db6e3916',
     false, NULL, 'checkpoints/v1-5-pruned-emaonly-fp16.safetensors',
     '[]', 'Stable Diffusion 1.5 in half precision'),

    ('dreamshaper-8', 'DreamShaper_8_pruned.safetensors',
     'https://huggingface.co/Lykon/DreamShaper/resolve/main/DreamShaper_8_pruned.safetensors',
     2.13, '879db523c30d3b9017143d56705015e15a2cb5628762c11d086fed9538abd7fd',
     false, NULL, 'checkpoints/DreamShaper_8_pruned.safetensors',
     '[]', 'All-round SD 1.5 fine-tune for art and portraits'),

    ('sdxl-base', 'sd_xl_base_1.0_0.9vae.safetensors',
     'https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0_0.9vae.safetensors',
     6.94, 'e6bb9ea85bbf7bf6478a7c6d18b71246f22e95d41bcdd80ed40aa212c33cfeff',
     false, NULL, 'checkpoints/sd_xl_base_1.0_0.9vae.safetensors',
     '[]', 'Stable Diffusion XL base model'),

    ('sdxl-refiner', 'sd_xl_refiner_1.0_0.9vae.safetensors',
     'https://huggingface.co/stabilityai/stable-diffusion-xl-refiner-1.0/resolve/main/sd_xl_refiner_1.0_0.9vae.safetensors',
     6.08, '8d0ce6c016004cbdacd50f937dad381d8c396628d621a7f97191470532780164',
     false, NULL, 'checkpoints/sd_xl_refiner_1.0_0.9vae.safetensors',
     '[]', 'Stable Diffusion XL refiner for the last steps'),

    ('sdxl-turbo', 'sd_xl_turbo_1.0_fp16.safetensors',
     'https://huggingface.co/stabilityai/sdxl-turbo/resolve/main/sd_xl_turbo_1.0_fp16.safetensors',
     6.94, NULL,
     false, NULL, 'checkpoints/sd_xl_turbo_1.0_fp16.safetensors',
     '[]', 'SDXL distilled to one to four steps'),

    ('sdxl-lightning-4step', 'sdxl_lightning_4step.safetensors',
     'https://huggingface.co/ByteDance/SDXL-Lightning/resolve/main/sdxl_lightning_4step.safetensors',
     6.94, NULL,
     false, NULL, 'checkpoints/sdxl_lightning_4step.safetensors',
     '[]', 'SDXL distilled to four steps, as a full checkpoint'),

    ('pony-v6-xl', 'ponyDiffusionV6XL_v6StartWithThisOne.safetensors',
     'https://civitai.com/api/download/models/290640?type=Model&format=SafeTensor&size=pruned&fp=fp16',
     6.94, '67ab2fd8ec439a89b3fedb15cc65f54336af163c7eb5e4f2acc98f090a29b0b3',
     true, 'civitai', 'checkpoints/ponyDiffusionV6XL_v6StartWithThisOne.safetensors',
     '[]', 'SDXL fine-tune for illustration and characters'),

-- Checkpoints: Stable Diffusion 3.5 (the full ones come without text encoders)

    ('sd35-large', 'sd3.5_large.safetensors',
     'https://huggingface.co/stabilityai/stable-diffusion-3.5-large/resolve/main/sd3.5_large.safetensors',
     16.46, NULL,
     true, 'huggingface', 'checkpoints/sd3.5_large.safetensors',
     '["clip-l", "clip-g", "t5xxl-fp16"]', 'Stable Diffusion 3.5 Large'),

    ('sd35-medium', 'sd3.5_medium.safetensors',
     'https://huggingface.co/stabilityai/stable-diffusion-3.5-medium/resolve/main/sd3.5_medium.safetensors',
     5.11, NULL,
     true, 'huggingface', 'checkpoints/sd3.5_medium.safetensors',
     '["clip-l", "clip-g", "t5xxl-fp8"]', 'Stable Diffusion 3.5 Medium for smaller cards'),

    ('sd35-large-fp8', 'sd3.5_large_fp8_scaled.safetensors',
     'https://huggingface.co/Comfy-Org/stable-diffusion-3.5-fp8/resolve/main/sd3.5_large_fp8_scaled.safetensors',
     14.93, '5ad94d6f951556b1ab6b75930fd4effbafaf3130fe9df440e7f2d05a220dd1be',
     false, NULL, 'checkpoints/sd3.5_large_fp8_scaled.safetensors',
     '[]', 'Stable Diffusion 3.5 Large in fp8, text encoders included'),

-- Checkpoints: Flux

    ('flux-dev', 'flux1-dev.safetensors',
     'https://huggingface.co/black-forest-labs/FLUX.1-dev/resolve/main/flux1-dev.safetensors',
     23.8, '7fac5935ad7b22c0e9147b26ae3f890b',
     true, 'huggingface', 'checkpoints/flux1-dev.safetensors',
     '[]', 'FLUX.1-dev - Professional AI image generation model'),

    ('flux-dev-fp8-checkpoint', 'flux1-dev-fp8.safetensors',
     'https://huggingface.co/Comfy-Org/flux1-dev/resolve/main/flux1-dev-fp8.safetensors',
     17.25, '8e91b68084b53a7fc44ed2a3756d821e355ac1a7b6fe29be760c1db532f3d88a',
     false, NULL, 'checkpoints/flux1-dev-fp8.safetensors',
     '[]', 'FLUX.1-dev in fp8 with VAE and text encoders in one file'),

    ('flux-schnell-fp8-checkpoint', 'flux1-schnell-fp8.safetensors',
     'https://huggingface.co/Comfy-Org/flux1-schnell/resolve/main/flux1-schnell-fp8.safetensors',
     17.24, 'ead426278b49030e9da5df862994f25ce94ab2ee4df38b556ddddb3db093bf72',
     false, NULL, 'checkpoints/flux1-schnell-fp8.safetensors',
     '[]', 'FLUX.1-schnell in fp8 with VAE and text encoders in one file'),

-- Diffusion models for images (they need a VAE and text encoders beside them)

    ('flux-schnell', 'flux1-schnell.safetensors',
     'https://huggingface.co/black-forest-labs/FLUX.1-schnell/resolve/main/flux1-schnell.safetensors',
     23.78, '9403429e0052277ac2a87ad800adece5481eecefd9ed334e1f348723621d2a0a',
     true, 'huggingface', 'diffusion_models/flux1-schnell.safetensors',
     '["flux-vae", "clip-l", "t5xxl-fp16"]', 'FLUX.1-schnell, images in four steps'),

    ('flux-dev-fp8', 'flux1-dev-fp8.safetensors',
     'https://huggingface.co/Kijai/flux-fp8/resolve/main/flux1-dev-fp8.safetensors',
     11.90, NULL,
     false, NULL, 'diffusion_models/flux1-dev-fp8.safetensors',
     '["flux-vae", "clip-l", "t5xxl-fp8"]', 'FLUX.1-dev in fp8, diffusion model only'),

    ('flux-kontext-dev-fp8', 'flux1-dev-kontext_fp8_scaled.safetensors',
     'https://huggingface.co/Comfy-Org/flux1-kontext-dev_ComfyUI/resolve/main/split_files/diffusion_models/flux1-dev-kontext_fp8_scaled.safetensors',
     11.90, NULL,
     false, NULL, 'diffusion_models/flux1-dev-kontext_fp8_scaled.safetensors',
     '["flux-vae", "clip-l", "t5xxl-fp8"]', 'FLUX.1 Kontext, edits an image by instruction'),

    ('flux-fill-dev', 'flux1-fill-dev.safetensors',
     'https://huggingface.co/black-forest-labs/FLUX.1-Fill-dev/resolve/main/flux1-fill-dev.safetensors',
     23.80, NULL,
     true, 'huggingface', 'diffusion_models/flux1-fill-dev.safetensors',
     '["flux-vae", "clip-l", "t5xxl-fp16"]', 'FLUX.1 Fill for inpainting and outpainting'),

    ('qwen-image-fp8', 'qwen_image_fp8_e4m3fn.safetensors',
     'https://huggingface.co/Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files/diffusion_models/qwen_image_fp8_e4m3fn.safetensors',
     20.43, '98763a127701eb6fb59096f7742cb3aa7d64ed510b9f4e882d8351f8176e3ce3',
     false, NULL, 'diffusion_models/qwen_image_fp8_e4m3fn.safetensors',
     '["qwen-image-vae", "qwen25-vl-7b-fp8"]', 'Qwen-Image in fp8, strong at text in pictures'),

-- Video models

    ('wan21-t2v-1-3b', 'wan2.1_t2v_1.3B_fp16.safetensors',
     'https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors',
     2.84, 'be531024cd9018cb5b48c40cfbb6a6191645b1c792eb8bf4f8c1c6e10f924dc5',
     false, NULL, 'diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors',
     '["umt5-xxl-fp8", "wan21-vae"]', 'Wan 2.1 text to video, the small model'),

    ('wan21-t2v-14b-fp8', 'wan2.1_t2v_14B_fp8_scaled.safetensors',
     'https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/diffusion_models/wan2.1_t2v_14B_fp8_scaled.safetensors',
     14.29, NULL,
     false, NULL, 'diffusion_models/wan2.1_t2v_14B_fp8_scaled.safetensors',
     '["umt5-xxl-fp8", "wan21-vae"]', 'Wan 2.1 text to video, the large model in fp8'),

    ('wan21-i2v-480p-14b-fp8', 'wan2.1_i2v_480p_14B_fp8_e4m3fn.safetensors',
     'https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/diffusion_models/wan2.1_i2v_480p_14B_fp8_e4m3fn.safetensors',
     16.40, NULL,
     false, NULL, 'diffusion_models/wan2.1_i2v_480p_14B_fp8_e4m3fn.safetensors',
     '["umt5-xxl-fp8", "wan21-vae", "clip-vision-h"]', 'Wan 2.1 image to video at 480p in fp8'),

    ('wan22-ti2v-5b', 'wan2.2_ti2v_5B_fp16.safetensors',
     'https://huggingface.co/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/diffusion_models/wan2.2_ti2v_5B_fp16.safetensors',
     10.00, '456f901338bd9eadbded3828b819109a9b68e8a525ca5cf8d0049a69fcfeca1e',
     false, NULL, 'diffusion_models/wan2.2_ti2v_5B_fp16.safetensors',
     '["umt5-xxl-fp8", "wan22-vae"]', 'Wan 2.2 video from text or an image'),

    ('hunyuan-video-t2v-fp8', 'hunyuan_video_720_cfgdistill_fp8_e4m3fn.safetensors',
     'https://huggingface.co/Kijai/HunyuanVideo_comfy/resolve/main/hunyuan_video_720_cfgdistill_fp8_e4m3fn.safetensors',
     13.19, NULL,
     false, NULL, 'diffusion_models/hunyuan_video_720_cfgdistill_fp8_e4m3fn.safetensors',
     '["hunyuan-video-vae", "clip-l", "llava-llama3-fp8"]', 'HunyuanVideo text to video in fp8'),

    ('hunyuan-video-i2v', 'hunyuan_video_image_to_video_720p_bf16.safetensors',
     'https://huggingface.co/Comfy-Org/HunyuanVideo_repackaged/resolve/main/split_files/diffusion_models/hunyuan_video_image_to_video_720p_bf16.safetensors',
     25.60, NULL,
     false, NULL, 'diffusion_models/hunyuan_video_image_to_video_720p_bf16.safetensors',
     '["hunyuan-video-vae", "clip-l", "llava-llama3-fp8", "llava-llama3-vision"]', 'HunyuanVideo image to video at 720p'),

    ('ltxv-2b-095', 'ltx-video-2b-v0.9.5.safetensors',
     'https://huggingface.co/Lightricks/LTX-Video/resolve/main/ltx-video-2b-v0.9.5.safetensors',
     6.34, '720d15c9f19f7d0f6b2a92bbbc34410e2cfb2f6856a100b38f734fbf973d4adf',
     false, NULL, 'checkpoints/ltx-video-2b-v0.9.5.safetensors',
     '["t5xxl-fp16"]', 'LTX-Video 2B, quick video with its VAE inside'),

    ('ltxv-13b-098-fp8', 'ltxv-13b-0.9.8-distilled-fp8.safetensors',
     'https://huggingface.co/Lightricks/LTX-Video/resolve/main/ltxv-13b-0.9.8-distilled-fp8.safetensors',
     15.69, NULL,
     false, NULL, 'checkpoints/ltxv-13b-0.9.8-distilled-fp8.safetensors',
     '["t5xxl-fp16"]', 'LTX-Video 13B, distilled, in fp8'),

-- VAEs

    ('flux-vae', 'ae.safetensors',
     'https://huggingface.co/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/ae.safetensors',
     0.34, 'afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38',
     false, NULL, 'vae/ae.safetensors',
     '[]', 'VAE of all FLUX.1 models, from a copy without a gate'),

    ('sd15-vae-ft-mse', 'vae-ft-mse-840000-ema-pruned.safetensors',
     'https://huggingface.co/stabilityai/sd-vae-ft-mse-original/resolve/main/vae-ft-mse-840000-ema-pruned.safetensors',
     0.33, NULL,
     false, NULL, 'vae/vae-ft-mse-840000-ema-pruned.safetensors',
     '[]', 'Improved VAE for SD 1.5 models'),

    ('sdxl-vae-fp16-fix', 'sdxl.vae.safetensors',
     'https://huggingface.co/madebyollin/sdxl-vae-fp16-fix/resolve/main/sdxl.vae.safetensors',
     0.33, '235745af8d86bf4a4c1b5b4f529868b37019a10f7c0b2e79ad0abca3a22bc6e1',
     false, NULL, 'vae/sdxl.vae.safetensors',
     '[]', 'SDXL VAE that is safe in half precision'),

    ('qwen-image-vae', 'qwen_image_vae.safetensors',
     'https://huggingface.co/Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files/vae/qwen_image_vae.safetensors',
     0.25, 'a70580f0213e67967ee9c95f05bb400e8fb08307e017a924bf3441223e023d1f',
     false, NULL, 'vae/qwen_image_vae.safetensors',
     '[]', 'VAE of Qwen-Image'),

    ('wan21-vae', 'wan_2.1_vae.safetensors',
     'https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/vae/wan_2.1_vae.safetensors',
     0.25, '2fc39d31359a4b0a64f55876d8ff7fa8d780956ae2cb13463b0223e15148976b',
     false, NULL, 'vae/wan_2.1_vae.safetensors',
     '[]', 'VAE of Wan 2.1'),

    ('wan22-vae', 'wan2.2_vae.safetensors',
     'https://huggingface.co/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/vae/wan2.2_vae.safetensors',
     1.41, 'e40321bd36b9709991dae2530eb4ac303dd168276980d3e9bc4b6e2b75fed156',
     false, NULL, 'vae/wan2.2_vae.safetensors',
     '[]', 'VAE of the Wan 2.2 5B model'),

    ('hunyuan-video-vae', 'hunyuan_video_vae_bf16.safetensors',
     'https://huggingface.co/Comfy-Org/HunyuanVideo_repackaged/resolve/main/split_files/vae/hunyuan_video_vae_bf16.safetensors',
     0.49, NULL,
     false, NULL, 'vae/hunyuan_video_vae_bf16.safetensors',
     '[]', 'VAE of HunyuanVideo'),

-- Text encoders

    ('clip-l', 'clip_l.safetensors',
     'https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main/clip_l.safetensors',
     0.25, '660c6f5b1abae9dc498ac2d21e1347d2abdb0cf6c0c0c8576cd796491d9a6cdd',
     false, NULL, 'text_encoders/clip_l.safetensors',
     '[]', 'CLIP-L text encoder for Flux, SD 3.5 and HunyuanVideo'),

    ('clip-g', 'clip_g.safetensors',
     'https://huggingface.co/Comfy-Org/stable-diffusion-3.5-fp8/resolve/main/text_encoders/clip_g.safetensors',
     1.39, 'ec310df2af79c318e24d20511b601a591ca8cd4f1fce1d8dff822a356bcdb1f4',
     false, NULL, 'text_encoders/clip_g.safetensors',
     '[]', 'CLIP-G text encoder for SD 3.5'),

    ('t5xxl-fp16', 't5xxl_fp16.safetensors',
     'https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main/t5xxl_fp16.safetensors',
     9.79, '6e480b09fae049a72d2a8c5fbccb8d3e92febeb233bbe9dfe7256958a9167635',
     false, NULL, 'text_encoders/t5xxl_fp16.safetensors',
     '[]', 'T5-XXL text encoder in half precision'),

    ('t5xxl-fp8', 't5xxl_fp8_e4m3fn.safetensors',
     'https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main/t5xxl_fp8_e4m3fn.safetensors',
     4.89, '7d330da4816157540d6bb7838bf63a0f02f573fc48ca4d8de34bb0cbfd514f09',
     false, NULL, 'text_encoders/t5xxl_fp8_e4m3fn.safetensors',
     '[]', 'T5-XXL text encoder in fp8, half the memory'),

    ('umt5-xxl-fp8', 'umt5_xxl_fp8_e4m3fn_scaled.safetensors',
     'https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors',
     6.74, 'c3355d30191f1f066b26d93fba017ae9809dce6c627dda5f6a66eaa651204f68',
     false, NULL, 'text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors',
     '[]', 'UMT5-XXL text encoder of the Wan models in fp8'),

    ('llava-llama3-fp8', 'llava_llama3_fp8_scaled.safetensors',
     'https://huggingface.co/Comfy-Org/HunyuanVideo_repackaged/resolve/main/split_files/text_encoders/llava_llama3_fp8_scaled.safetensors',
     9.09, '2f0c3ad255c282cead3f078753af37d19099cafcfc8265bbbd511f133e7af250',
     false, NULL, 'text_encoders/llava_llama3_fp8_scaled.safetensors',
     '[]', 'LLaVA-Llama-3 text encoder of HunyuanVideo in fp8'),

    ('qwen25-vl-7b-fp8', 'qwen_2.5_vl_7b_fp8_scaled.safetensors',
     'https://huggingface.co/Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors',
     9.38, 'cb5636d852a0ea6a9075ab1bef496c0db7aef13c02350571e388aea959c5c0b4',
     false, NULL, 'text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors',
     '[]', 'Qwen2.5-VL text encoder of Qwen-Image in fp8'),

-- LoRAs

    ('sdxl-lightning-4step-lora', 'sdxl_lightning_4step_lora.safetensors',
     'https://huggingface.co/ByteDance/SDXL-Lightning/resolve/main/sdxl_lightning_4step_lora.safetensors',
     0.39, 'bf56cf2657efb15e465d81402ed481d1e11c4677e4bcce1bc11fe71ad8506b79',
     false, NULL, 'loras/sdxl_lightning_4step_lora.safetensors',
     '[]', 'Brings any SDXL model down to four steps'),

    ('hyper-flux-8steps-lora', 'Hyper-FLUX.1-dev-8steps-lora.safetensors',
     'https://huggingface.co/ByteDance/Hyper-SD/resolve/main/Hyper-FLUX.1-dev-8steps-lora.safetensors',
     1.39, NULL,
     false, NULL, 'loras/Hyper-FLUX.1-dev-8steps-lora.safetensors',
     '[]', 'Brings FLUX.1-dev down to eight steps'),

    ('ip-adapter-faceid-plusv2-sd15-lora', 'ip-adapter-faceid-plusv2_sd15_lora.safetensors',
     'https://huggingface.co/h94/IP-Adapter-FaceID/resolve/main/ip-adapter-faceid-plusv2_sd15_lora.safetensors',
     0.05, '8abff87a15a049f3e0186c2e82c1c8e77783baf2cfb63f34c412656052eb57b0',
     false, NULL, 'loras/ip-adapter-faceid-plusv2_sd15_lora.safetensors',
     '[]', 'LoRA that goes with the SD 1.5 FaceID Plus V2 adapter'),

-- ControlNets

    ('controlnet-sd15-canny', 'control_v11p_sd15_canny_fp16.safetensors',
     'https://huggingface.co/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/control_v11p_sd15_canny_fp16.safetensors',
     0.72, NULL,
     false, NULL, 'controlnet/control_v11p_sd15_canny_fp16.safetensors',
     '[]', 'Steers SD 1.5 by edges'),

    ('controlnet-sd15-depth', 'control_v11f1p_sd15_depth_fp16.safetensors',
     'https://huggingface.co/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/control_v11f1p_sd15_depth_fp16.safetensors',
     0.72, NULL,
     false, NULL, 'controlnet/control_v11f1p_sd15_depth_fp16.safetensors',
     '[]', 'Steers SD 1.5 by a depth map'),

    ('controlnet-sd15-openpose', 'control_v11p_sd15_openpose_fp16.safetensors',
     'https://huggingface.co/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/control_v11p_sd15_openpose_fp16.safetensors',
     0.72, NULL,
     false, NULL, 'controlnet/control_v11p_sd15_openpose_fp16.safetensors',
     '[]', 'Steers SD 1.5 by body pose'),

    ('controlnet-sdxl-union-promax', 'diffusion_pytorch_model_promax.safetensors',
     'https://huggingface.co/xinsir/controlnet-union-sdxl-1.0/resolve/main/diffusion_pytorch_model_promax.safetensors',
     2.51, '9fae2e50cb431bfcbe05822b59ec2228df545ef27f711dea8949e9f4ed9f7cdc',
     false, NULL, 'controlnet/controlnet-union-sdxl-1.0/diffusion_pytorch_model_promax.safetensors',
     '[]', 'One SDXL ControlNet for many kinds of control image'),

    ('controlnet-flux-union-pro-fp8', 'flux_shakker_labs_union_pro-fp8_e4m3fn.safetensors',
     'https://huggingface.co/Kijai/flux-fp8/resolve/main/flux_shakker_labs_union_pro-fp8_e4m3fn.safetensors',
     3.30, NULL,
     false, NULL, 'controlnet/flux_shakker_labs_union_pro-fp8_e4m3fn.safetensors',
     '[]', 'One FLUX.1-dev ControlNet for many control images, in fp8'),

-- Upscalers

    ('4x-ultrasharp', '4x-UltraSharp.pth',
     'https://huggingface.co/Kim2091/UltraSharp/resolve/main/4x-UltraSharp.pth',
     0.07, 'a5812231fc936b42af08a5edba784195495d303d5b3248c24489ef0c4021fe01',
     false, NULL, 'upscale_models/4x-UltraSharp.pth',
     '[]', 'Crisp four-times upscaler'),

    ('realesrgan-x4plus', 'RealESRGAN_x4plus.pth',
     'https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.0/RealESRGAN_x4plus.pth',
     0.07, '4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1',
     false, NULL, 'upscale_models/RealESRGAN_x4plus.pth',
     '[]', 'Four-times upscaler for photos'),

    ('realesrgan-x4plus-anime', 'RealESRGAN_x4plus_anime_6B.pth',
     'https://github.com/xinntao/Real-ESRGAN/releases/download/v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth',
     0.02, 'f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da',
     false, NULL, 'upscale_models/RealESRGAN_x4plus_anime_6B.pth',
     '[]', 'Small four-times upscaler for drawings'),

-- CLIP vision

    ('clip-vision-vit-h', 'CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors',
     'https://huggingface.co/h94/IP-Adapter/resolve/main/models/image_encoder/model.safetensors',
     2.53, '6ca9667da1ca9e0b0f75e46bb030f7e011f44f86cbfb8d5a36590fcd7507b030',
     false, NULL, 'clip_vision/CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors',
     '[]', 'Image encoder of most IP-adapters'),

    ('clip-vision-h', 'clip_vision_h.safetensors',
     'https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/clip_vision/clip_vision_h.safetensors',
     1.26, '64a7ef761bfccbadbaa3da77366aac4185a6c58fa5de5f589b42a65bcc21f161',
     false, NULL, 'clip_vision/clip_vision_h.safetensors',
     '[]', 'Image encoder of Wan 2.1 image to video'),

    ('sigclip-vision-384', 'sigclip_vision_patch14_384.safetensors',
     'https://huggingface.co/Comfy-Org/sigclip_vision_384/resolve/main/sigclip_vision_patch14_384.safetensors',
     0.86, '1fee501deabac72f0ed17610307d7131e3e9d1e838d0363aa3c2b97a6e03fb33',
     false, NULL, 'clip_vision/sigclip_vision_patch14_384.safetensors',
     '[]', 'Image encoder of FLUX.1 Redux'),

    ('llava-llama3-vision', 'llava_llama3_vision.safetensors',
     'https://huggingface.co/Comfy-Org/HunyuanVideo_repackaged/resolve/main/split_files/clip_vision/llava_llama3_vision.safetensors',
     0.65, NULL,
     false, NULL, 'clip_vision/llava_llama3_vision.safetensors',
     '[]', 'Image encoder of HunyuanVideo image to video'),

-- IP-adapters and style models (they need an image encoder)

    ('ip-adapter-plus-sd15', 'ip-adapter-plus_sd15.safetensors',
     'https://huggingface.co/h94/IP-Adapter/resolve/main/models/ip-adapter-plus_sd15.safetensors',
     0.10, 'a1c250be40455cc61a43da1201ec3f1edaea71214865fb47f57927e06cbe4996',
     false, NULL, 'ipadapter/ip-adapter-plus_sd15.safetensors',
     '["clip-vision-vit-h"]', 'Prompts SD 1.5 with a picture'),

    ('ip-adapter-faceid-plusv2-sd15', 'ip-adapter-faceid-plusv2_sd15.bin',
     'https://huggingface.co/h94/IP-Adapter-FaceID/resolve/main/ip-adapter-faceid-plusv2_sd15.bin',
     0.16, '26d0d86a1d60d6cc811d3b8862178b461e1eeb651e6fe2b72ba17aa95411e313',
     false, NULL, 'ipadapter/ip-adapter-faceid-plusv2_sd15.bin',
     '["clip-vision-vit-h", "ip-adapter-faceid-plusv2-sd15-lora"]', 'Keeps a face alike in SD 1.5 pictures'),

    ('ip-adapter-plus-sdxl-vit-h', 'ip-adapter-plus_sdxl_vit-h.safetensors',
     'https://huggingface.co/h94/IP-Adapter/resolve/main/sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors',
     0.85, '3f5062b8400c94b7159665b21ba5c62acdcd7682262743d7f2aefedef00e6581',
     false, NULL, 'ipadapter/ip-adapter-plus_sdxl_vit-h.safetensors',
     '["clip-vision-vit-h"]', 'Prompts SDXL with a picture'),

    ('flux-redux-dev', 'flux1-redux-dev.safetensors',
     'https://huggingface.co/black-forest-labs/FLUX.1-Redux-dev/resolve/main/flux1-redux-dev.safetensors',
     0.13, NULL,
     true, 'huggingface', 'style_models/flux1-redux-dev.safetensors',
     '["sigclip-vision-384"]', 'FLUX.1 Redux, variations of a picture')

ON CONFLICT (id) DO NOTHING;
