module attention

go 1.20

require github.com/yalue/onnxruntime_go v1.27.0
